"""The things an instruction names, without a parser.

The paper takes spaCy's noun phrases. This stand-in is a chunker by rule: words that cannot be
inside a noun phrase (articles, prepositions, verbs, ...) cut the sentence, and what remains
between two cuts is a phrase. Lists and word endings decide, so rare verbs may slip in.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# After one of these a noun phrase follows, even if the next word looks like a verb.
_DETERMINERS = _words(
    """a an the this that these those my your his her its our their some any every each no another
    both all either neither such what's"""
)
_PREPOSITIONS = _words(
    """about above across after against along among around as at before behind below beneath beside
    between beyond by despite down during except for from in inside into like near of off on onto
    out outside over past per round since through throughout toward towards under until up upon via
    with within without than"""
)
_OTHER_CUTS = _words(
    """i me you he him she it we us they them myself yourself himself herself itself ourselves
    themselves who whom whose which what where when why how if whether because although though while
    unless once and or but nor so yet then there here not never always often sometimes still just
    only also even very too quite rather really already again ever soon now later ago instead
    exactly perhaps maybe please away back forward together apart else same long much more most less
    least many few several enough suddenly overnight someone somebody anyone anybody everyone
    everybody nobody something anything everything nothing one's lots let's yes today tomorrow
    yesterday tonight indoors outdoors upside"""
)
_AUXILIARIES = _words(
    """am is are was were be been being do does did done doing have has had having will would shall
    should can could may might must cannot isn't aren't wasn't weren't don't doesn't didn't won't
    wouldn't can't couldn't shouldn't hasn't haven't hadn't i'd you'd he'd she'd we'd they'd it's
    that's to let"""
)
# Never nouns in practice.
_VERBS = _words(
    """happen happens happened imagine suppose assume consider think know knew see saw seen become
    becomes became begin begins began begun remain remains remained go goes went gone come comes
    came bring brings brought take takes took taken give gives gave given get gets got gotten make
    makes made keep keeps kept put puts leave left lose loses lost find found hold holds held
    say says said tell tells told ask asks feel feels felt hear heard stand stands stood sit sits
    sat lie lies lay fall falls fell fallen break breaks broke broken grow grows grew grown throw
    throws threw thrown blow blows blew blown fly flies flew flown eat eats ate eaten drink drinks
    drank write writes wrote written draw draws drew drawn build builds built burn burns burnt melt
    melts freeze freezes froze frozen sink sinks sank sunk rise rises rose risen spill spills spilt
    pour pours shrink shrinks shrank hang hangs hung stick sticks stuck tear tears tore torn bend
    bends bent spread spreads shake shakes shook wear wears wore worn awake wakes woke sleep sleeps
    slept add adds remove removes replace replaces insert inserts transform transforms convert
    converts apply applies edit edits depict depicts illustrate visualize visualise predict generate
    create creates describe explain compare reveal reveals release releases lift lifts push pushes
    pull pulls tip tips tilt tilts roll rolls collapse collapses explode explodes expand expands
    evaporate evaporates dissolve dissolves decay decays wither withers wilt wilts rot rots rust
    rusts ripen ripens bloom blooms sprout sprouts hatch hatches arrive arrives disappear disappears
    appear appears vanish vanishes continue continues pass passes cast casts swap swaps receive
    receives catch catches caught meet meets met win wins won choose chose chosen forget forgets
    forgot forgotten steal stolen stole shut shuts set sets cut cuts hit hits run runs ran let
    looks seem seems stay stays stayed exist exists enter enters follow follows occur occurs kiss
    kisses pops lit lets snap snaps climb climbs carry carries"""
)
# Verbs unless an article, an adjective or a preposition stands before them.
_MAYBE_VERBS = _words(
    """leaves show shows turn turns change changes look drop drops light lights water waters
    wind rain rains snow snows storm cover covers paint paints color colour picture pictures
    place places play plays walk walks move moves swing swings slide slides float floats jump
    jumps land lands crack cracks crash crashes fill fills empty dry dries wash heat heats cool
    cools warm warms open opens close closes clean cleans point points touch touches press
    presses kick kicks strike strikes pop use uses end ends start starts stop stops step steps
    visit visits rest rests age ages fade fades glow glows shine shines dance dances fight
    attack attacks flood floods plant plants shape spin spins flip flips rotate rotates switch
    switches ring rings wait waits return returns cook cooks bake bakes boil boils chop peel
    slice bite bites hide hides dress dig digs knock knocks leak leaks burst bursts split splits
    drift drifts flow flows bounce bounces render stretch squeeze"""
)
# Spans of time, manner and the picture itself: grammatical, but nothing to look at.
_LIGHT = _words(
    """second seconds minute minutes hour hours day days week weeks month months year years decade
    decades century centuries moment moments while time times way thing things kind sort lot bit
    part result effect scene image picture photo photograph illustration instant case version
    situation future past morning noon afternoon evening midnight fact outcome appearance place
    home middle top bottom side front left right end"""
)
_NUMBERS = _words(
    """one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty
    fifty sixty hundred thousand million half dozen couple first next last other own whole entire
    different single certain"""
)
_PARTICIPLE_NOUNS = _words(
    """building ceiling painting wedding ring king string spring wing thing swing bed seed shed sled
    weed reed railing clothing lightning evening morning drawing duckling sibling wing feed speed
    pudding sapling seedling sting sling earring icing offspring stocking kindling"""
)
_LY_NOUNS = _words("fly butterfly dragonfly family jelly lily belly bully ally firefly")
_ADJECTIVES = _words(
    """red green blue yellow orange purple pink brown black white grey gray golden silver dark
    bright big small large tiny huge giant little tall short wide narrow thick thin heavy full hot
    cold warm cool wet dry new old young fresh clean dirty soft hard sharp round square flat deep
    high low fast slow strong weak loud quiet gentle sudden great wooden magic"""
)


def extract_objects(instruction: str, limit: int) -> tuple[str, ...]:
    """At most ``limit`` lower-case noun phrases in order of first mention, without articles.

    "What would happen if this ice cube were left in the sun?" -> ("ice cube", "sun")
    """
    words = [w.lower().replace("’", "'") for w in _WORD.findall(instruction)]
    found: list[str] = []
    chunk: list[str] = []
    opener = ""  # the word that cut last: what kind of phrase may follow
    for word in [*words, "."]:
        owner = word.removesuffix("'s") if word.endswith("'s") else ""
        if owner and not _cuts(owner, opener, chunk) and word not in _AUXILIARIES:
            word = owner  # "the witch's cauldron": the owner is a thing too, then comes the owned
            chunk.append(word)
            _close(chunk, found)
            chunk, opener = [], "the"
        elif _cuts(word, opener, chunk):
            _close(chunk, found)
            chunk, opener = [], word
        else:
            chunk.append(word)
    return tuple(found[:limit])


def _cuts(word: str, opener: str, chunk: list[str]) -> bool:
    """Whether a word ends the phrase before it and is not part of the next."""
    if not word[0].isalnum() or word in _DETERMINERS or word in _PREPOSITIONS:
        return True
    if word in _OTHER_CUTS or word in _AUXILIARIES:
        return True
    if word.endswith("ly") and len(word) > 4 and word not in _LY_NOUNS:
        return True
    # "the broken vase", "of burning wood": directly after an article it describes what follows.
    described = opener in _DETERMINERS or opener in _PREPOSITIONS
    begins = not [w for w in chunk if w not in _NUMBERS and not w.isdigit()]
    last = chunk[-1] if chunk else ""
    if word in _VERBS or _is_participle(word):
        return not (described and begins) and last not in _ADJECTIVES
    if word in _MAYBE_VERBS:
        # "snow storm" is a compound, "the light fades" is not.
        compound = last in _MAYBE_VERBS and not word.endswith("s")
        return not (begins and described) and not _describes(last) and not compound
    return False


def _is_participle(word: str) -> bool:
    if word in _PARTICIPLE_NOUNS or len(word) < 5:
        return False
    return word.endswith(("ing", "ed")) and not word.endswith("eed")


def _describes(word: str) -> bool:
    return word in _ADJECTIVES or word in _VERBS or _is_participle(word)


def _close(chunk: list[str], found: list[str]) -> None:
    """Adds the phrase of a chunk, if it names something not yet found."""
    while chunk and (chunk[0] in _NUMBERS or chunk[0].isdigit()):
        chunk = chunk[1:]
    if not chunk or chunk[-1] in _LIGHT or chunk[-1] in _ADJECTIVES:
        return
    if len(chunk) == 1 and _describes(chunk[0]):  # "the broken ...": nothing followed
        return
    phrase = " ".join(chunk)
    if phrase not in found and not (len(phrase) == 1 and phrase.isascii()):
        found.append(phrase)
