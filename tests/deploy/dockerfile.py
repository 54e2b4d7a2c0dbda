"""The Dockerfile's instructions, stage by stage, and the folder that they copy from."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass

from deploy.manifests import ROOT

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
IGNORED = ROOT / ".dockerignore"


@dataclass(frozen=True)
class Stage:
    """The instructions from one FROM on, as pairs of a keyword and its text."""

    instructions: tuple

    def texts(self, keyword):
        return [text for name, text in self.instructions if name == keyword]

    def text(self, keyword):
        """The text of an instruction that is given once."""
        [text] = self.texts(keyword)
        return text

    def values(self, keyword):
        """The NAME=VALUE pairs of ENV, ARG or LABEL."""
        words = [word for text in self.texts(keyword) for word in shlex.split(text)]
        return dict(word.split("=", 1) for word in words)

    @property
    def entrypoint(self):
        """The command; ValueError where it is not in exec form."""
        return json.loads(self.text("ENTRYPOINT"))


def read_stages():
    """The build stage and the final one."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    instructions = [tuple(line.split(maxsplit=1)) for line in logical if line]
    starts = [index for index, (keyword, _) in enumerate(instructions) if keyword == "FROM"]
    return [Stage(tuple(instructions[start:end])) for start, end in zip(starts, [*starts[1:], None], strict=True)]


def copy_context(folder):
    """Copy what .dockerignore leaves: it ignores everything, lets some paths in, and leaves things out of those."""
    lines = [line for line in IGNORED.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    left_out = [line for line in lines[1:] if not line.startswith("!")]
    folders = [ROOT / line for line in left_out if not line.startswith("**/")]
    names = shutil.ignore_patterns(*(line.removeprefix("**/") for line in left_out if line.startswith("**/")))

    def ignore(parent, children):
        return {child for child in children if ROOT / parent / child in folders} | names(parent, children)

    for name in allowed:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
