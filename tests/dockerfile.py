"""A Dockerfile as its steps, and as far as a test can take them without a Docker engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One instruction."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its arguments, without options."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def stage(self) -> str:
        """The stage that a COPY takes its files from; empty: the build context."""
        found = re.search(r"--from=(\S+)", self.text)
        return found[1] if found else ""


@dataclass
class Stage:
    """What follows a FROM."""

    base: str
    steps: list[Step] = field(default_factory=list)


def parse(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name; one without a name is called after its number."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    stages: dict[str, Stage] = {}
    for name, _, arguments in (line.strip().partition(" ") for line in lines if line.strip()):
        if name == "FROM":
            base, _, alias = arguments.partition(" AS ")
            stages[alias or str(len(stages))] = Stage(base)
        elif stages:
            [*_, stage] = stages.values()
            stage.steps.append(Step(name, arguments.strip()))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Step]:
    """All steps that a stage is made of, those of the stages below it first."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else ()), *stage.steps]


@dataclass
class Image:
    """A folder that stands for the file system of an image, and what the steps have set."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    command: list[str] = field(default_factory=list)

    def path(self, path: str) -> Path:
        """Where a path of the image is here."""
        return self.root / (Path(self.folder) / path).relative_to("/")

    def take(self, steps: list[Step], context: Path) -> None:
        """Take the steps that copy from the context and set something. RUN, and COPY from a stage, are not taken."""
        for step in steps:
            if step.name == "ENV":
                for word in step.words:
                    name, _, value = word.partition("=")
                    self.environment[name] = value
            elif step.name == "WORKDIR":
                self.folder = step.text
                self.path(".").mkdir(parents=True, exist_ok=True)
            elif step.name == "CMD":
                self.command = json.loads(step.text)
            elif step.name == "COPY" and not step.stage:
                self._copy(step, context)

    def _copy(self, step: Step, context: Path) -> None:
        """As Docker does: the contents of a folder, a file below a destination that ends with a slash."""
        *sources, target = step.words
        for source in sources:
            if (context / source).is_dir():
                shutil.copytree(context / source, self.path(target), dirs_exist_ok=True)
            else:
                destination = self.path(target) / source if target.endswith("/") else self.path(target)
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(context / source, destination)

    def seen_from_here(self, path: str) -> dict[str, str]:
        """The environment of its processes; absolute paths of the image become paths below its root."""
        changed = {
            name: re.sub(r"(^|:)/", rf"\1{self.root}/", value) for name, value in self.environment.items()
        }
        return {**changed, "PATH": changed["PATH"].replace("$PATH", path)}
