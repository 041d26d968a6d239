"""Prints a script that completes verbs and flags in a shell: bash, zsh or fish.

source <(rb-jax completion --shell=bash)          # in ~/.bashrc
source <(rb-jax completion --shell=zsh)           # in ~/.zshrc
rb-jax completion --shell=fish | source           # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import importlib

from absl import flags as absl_flags

from rb_jax.cli import VERBS
from rb_jax.cli.flags import Flags
from rb_jax.config import files

BASH = """_rb_jax() {
  local word=${COMP_WORDS[COMP_CWORD]} line="${COMP_WORDS[*]:1:COMP_CWORD-1}"
  local previous=${COMP_WORDS[COMP_CWORD-1]} words
  # Bash cuts words at "=": --flag, =, value.
  if [[ $word == = ]]; then word=; elif [[ $previous == = ]]; then
    previous=${COMP_WORDS[COMP_CWORD-2]}; fi
  case $previous in
%(values)s
  --*) if [[ ${COMP_WORDS[COMP_CWORD-1]} == = || ${COMP_WORDS[COMP_CWORD]} == = ]]; then
      COMPREPLY=($(compgen -f -- "$word")); return; fi ;;
  esac
  case $line in
%(verbs)s
  *) words="%(first)s" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
}
complete -F _rb_jax rb-jax
"""


def define(flags: Flags) -> None:
    flags.choice("shell", ["bash", "zsh", "fish"], "For which shell.", required=True)


def run(flags: Flags) -> int:
    if flags.shell == "fish":
        print(fish())
        return 0
    if flags.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(bash())
    return 0


def flags_of(verb: str) -> Flags:
    """The flags that a verb defines."""
    flags = Flags(verb, [])
    importlib.import_module(f"rb_jax.cli.{VERBS[verb][0]}").define(flags)
    return flags


def values() -> dict[str, list[str]]:
    """Flag -> the values it can have, of flags with a choice."""
    found = {"--config": files.names()}
    for verb in VERBS:
        flags = flags_of(verb)
        for name in flags.names():
            parser = flags.values[name].parser
            if isinstance(parser, absl_flags.EnumParser):
                found.setdefault(f"--{name}", []).extend(parser.enum_values)
    return {name: sorted(set(each)) for name, each in sorted(found.items())}


def bash() -> str:
    choices = [
        f'  {flag}) COMPREPLY=($(compgen -W "{" ".join(each)}" -- "$word")); return ;;'
        for flag, each in values().items()
    ]
    verbs = [
        f'  "{verb}"*) words="{" ".join(f"--{name}=" for name in flags_of(verb).names())}" ;;'
        for verb in sorted(VERBS, key=len, reverse=True)
    ]
    groups: dict[str, list[str]] = {}
    for verb in VERBS:
        if " " in verb:
            group, inner = verb.split(" ")
            groups.setdefault(group, []).append(inner)
    verbs += [f'  "{group}"*) words="{" ".join(inner)}" ;;' for group, inner in groups.items()]
    first = " ".join([*dict.fromkeys(verb.split(" ")[0] for verb in VERBS), "help"])
    return BASH % {"values": "\n".join(choices), "verbs": "\n".join(verbs), "first": first}


def fish() -> str:
    """One line per verb and one per flag."""
    lines = ["complete -c rb-jax -f"]
    for group in dict.fromkeys(verb.split(" ")[0] for verb in VERBS):
        lines.append(f"complete -c rb-jax -n __fish_use_subcommand -a {group}")
    choices = values()
    for verb, (_, text) in VERBS.items():
        group, _, inner = verb.partition(" ")
        seen = f"__fish_seen_subcommand_from {group}"
        if inner:
            lines.append(f"complete -c rb-jax -n '{seen}' -a {inner} -d '{text}'")
            seen += f"; and __fish_seen_subcommand_from {inner}"
        flags = flags_of(verb)
        for name in flags.names():
            given = f" -a '{' '.join(choices[f'--{name}'])}'" if f"--{name}" in choices else " -F"
            about = flags.values[name].help.split(". ")[0].replace("'", "\\'")
            lines.append(f"complete -c rb-jax -n '{seen}' -l {name} -r{given} -d '{about}'")
    return "\n".join(lines)
