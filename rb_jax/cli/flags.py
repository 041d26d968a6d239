"""The flags of a verb: absl's, defined by the verb's module, with a help that is easy to read."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from rb_jax.config import Config, check_key, files, from_config_dict
from rb_jax.errors import InputError, refuse_url
from rb_jax.runtime import logging

HELP = ("--help", "-h", "-help")
BUCKETS = ("workdir", "checkpoint", "compilation_cache")  # may be in one


class Flags:
    """Flags to define, then to ``parse``, then to read as attributes.

    ``required`` ones are an error when they are missing.
    """

    def __init__(self, verb: str, argv: Sequence[str], text: str = ""):
        self.verb, self.text = verb, text
        self.argv = [_underscored(word) for word in argv]
        for word in self.argv:
            if any("\ud800" <= letter <= "\udfff" for letter in word):
                shown = word.encode("ascii", "backslashreplace").decode()
                raise InputError(f"{shown:.80}: is not UTF-8 (or set LANG=C.UTF-8)")
        self.values = absl_flags.FlagValues()
        self.required: list[str] = []
        self.takes_config = False

    def __getattr__(self, name: str) -> Any:
        return self.values[name].value

    def string(self, name: str, text: str, default: str | None = None, required: bool = False):
        absl_flags.DEFINE_string(name, default, text, flag_values=self.values)
        self.required += [name] * required

    def integer(self, name: str, text: str, default: int | None = None):
        absl_flags.DEFINE_integer(name, default, text, flag_values=self.values)

    def number(self, name: str, text: str, default: float | None = None):
        absl_flags.DEFINE_float(name, default, text, flag_values=self.values)

    def boolean(self, name: str, text: str):
        absl_flags.DEFINE_bool(name, False, text, flag_values=self.values)

    def choice(
        self,
        name: str,
        choices: Sequence[str],
        text: str,
        default: str | None = None,
        required: bool = False,
    ):
        absl_flags.DEFINE_enum(name, default, list(choices), text, flag_values=self.values)
        self.required += [name] * required

    def words(self, name: str, text: str, required: bool = False):
        """Comma-separated."""
        absl_flags.DEFINE_list(name, None, text, flag_values=self.values)
        self.required += [name] * required

    def repeated(self, name: str, text: str):
        absl_flags.DEFINE_multi_string(name, [], text, flag_values=self.values)

    def config(self):
        """--config, --preset, and a flag for every value of the configuration."""
        self.string(
            "config",
            "A configuration by name (reasonworld, reason50k_flux, ...) or file, with its preset: "
            "reason50k_flux:lora. Any value is set with --config.a.b=VALUE.",
            required=True,
        )
        self.string("preset", "The preset of --config, e.g. paper or lora,1024.")
        self.takes_config = True

    def trained(self):
        """A model to run."""
        text = (
            "Weights folder, training workdir or one of its checkpoints/STEP, on a disk or in a "
            "bucket (gs:// or s3://); 'shipped' is the model that comes along."
        )
        self.string("checkpoint", text, "shipped")

    def job(self, shard_examples: int):
        """How a data job is cut and divided; ``divided`` gives it back."""
        text = "Examples per shard, at most where the source allows it."
        self.integer("shard_examples", text, shard_examples)
        self.integer("process_index", "Which of several processes this is, from 0.", 0)
        self.integer("process_count", "How many processes share the work.", 1)

    def divided(self) -> dict[str, Any]:
        return self._given("shard_examples", "process_index", "process_count")

    def compiling(self):
        """Where compiled programs are kept."""
        self.string(
            "compilation_cache",
            "Folder or bucket for compiled programs, or off (default: in your cache folder).",
        )

    def sampling(self):
        """What the sampler takes; ``sampled`` gives it back."""
        self.integer("steps", "Euler steps (default: the model's).")
        self.number("guidance", "Distilled guidance scale (default: the model's).")
        self.number("true_cfg", "Classifier-free guidance scale; 1 is off (default: the model's).")
        self.integer("seed", "Seed of the noise; same seed, same picture.", 0)

    def sampled(self) -> dict[str, Any]:
        return self._given("steps", "guidance", "true_cfg", "seed")

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: self.values[name].value for name in names}

    def parse(self) -> bool:
        """Reads the words, and sets up logging; False when only the help was wanted.

        Raises InputError for a flag that does not exist or cannot have its value, for a missing one
        and for words left over.
        """
        choices = [*logging.LEVELS, *logging.NUMBERS]
        text = "How much is said: error, warning, info or debug."
        self.choice("verbosity", choices, text, "info")
        if any(word in HELP for word in self.argv):
            print(self.help())
            return False
        argv = self.argv if not self.takes_config else self._take_config()
        try:
            rest = self.values(["rb-jax", *argv])[1:]
        except absl_flags.Error as error:
            raise InputError(self._named(str(error))) from None
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"--config: {type(error).__name__}: {error}") from None
        if rest:
            raise InputError(
                f"unexpected argument {rest[0]!r}; rb-jax {self.verb} --help lists flags"
            )
        for name in self.required:
            value = self.values[name].value
            if value is None or (value in ("", [], [""]) and name != "instruction"):
                raise InputError(f"rb-jax {self.verb} needs --{name}")
        for name in self.values:
            value = self.values[name].value if name != "instruction" else None
            if isinstance(value, str) and value.startswith("~/"):  # no shell does it after a "="
                value = self.values[name].value = os.path.expanduser(value)
            for each in value if isinstance(value, list) else [value]:
                refuse_url(f"--{name}", each, buckets=name in BUCKETS)
        logging.setup(str(self.values["verbosity"].value))
        return True

    def checked_config(self) -> Config:
        """The configuration with its changes, checked; raises ConfigError naming the key."""
        values: Any = self.values["config"].value
        return from_config_dict(values)

    def _take_config(self) -> list[str]:
        """Loads the configuration, so that its values are flags; the words that are left."""
        argv, chosen = _joined(self.argv, ("config", "preset")), {"config": "", "preset": ""}
        rest = []
        for word in argv:
            name, _, value = word.lstrip("-").partition("=")
            if word.startswith("--") and name in chosen and "=" in word:
                chosen[name] = value
                continue
            if name.startswith("config."):  # ml_collections' own message would not name it
                check_key(name.removeprefix("config."))
            rest.append(word)
        if not chosen["config"]:
            raise InputError(f"rb-jax {self.verb} needs --config")
        del self.values.config
        loaded = files.load(chosen["config"], chosen["preset"])
        config_flags.DEFINE_config_dict(
            "config", loaded, flag_values=self.values, sys_argv=["rb-jax", *rest]
        )
        return rest

    def _named(self, message: str) -> str:
        """absl's message, with the verb whose flag is meant."""
        found = re.match(
            r"Unknown command line flag '(.*?)'(?:\. Did you mean: (.*?) \?)?", message
        )
        if not found:
            return message
        flag, near = found.groups()
        meant = f"; did you mean --{near.replace(', ', ' or --')}?" if near else ""
        return f"unknown flag --{flag}{meant} (rb-jax {self.verb} --help lists them)"

    def help(self) -> str:
        """The verb's text and its flags, in the order in which they were defined."""
        width = min(shutil.get_terminal_size((100, 24)).columns, 100)
        text = self.text.strip()
        lines = [f"rb-jax {self.verb}: {text[:1].lower()}{text[1:]}", "", "flags:"]
        for name in self.names():
            flag = self.values[name]
            unset = flag.default is None or flag.default is False or flag.default == []
            default = "" if unset else f" (default: {flag.default})"
            needed = " (required)" if name in self.required else ""
            indent = " " * 6
            text = flag.help.split(";\n")[0].strip()  # absl's own remarks are left out
            body = f"{text}{default}{needed}"
            body = textwrap.fill(body, width, initial_indent=indent, subsequent_indent=indent)
            lines += [f"  --{name}", body]
        return "\n".join(lines)

    def names(self) -> list[str]:
        """The verb's flags, as they were defined."""
        by_module = self.values.flags_by_module_dict()
        return [flag.name for flags in by_module.values() for flag in flags]


def _joined(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """``--config X`` as ``--config=X``."""
    joined, words = [], iter(argv)
    for word in words:
        value = next(words, None) if word in [f"--{name}" for name in names] else None
        joined.append(word if value is None else f"{word}={value}")
    return joined


def _underscored(argument: str) -> str:
    """``--allow-pickle`` as absl knows it, ``--allow_pickle``; the value is left alone."""
    flag, equals, value = argument.partition("=")
    known = re.fullmatch(r"--[a-z]+(-[a-z]+)+", flag)
    return (f"--{flag[2:].replace('-', '_')}" if known else flag) + equals + value
