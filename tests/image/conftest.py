"""The image under test, a workspace of a caller who is not root, and containers that are gone when their test is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

CALLER = os.getuid() or 1234  # root tests as somebody else, so that it shows what root alone could do


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "image":
        return
    for item in items:
        if "image" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="image: run with make test-image"))


def _docker(*arguments: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Returns what docker did and said."""
    return subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s)


@dataclass(frozen=True)
class Workspace:
    """A folder of the caller's, and containers of the image that have it as /workspace."""

    path: Path
    image: str

    def options(self, *options: str, network: str = "none", mount: str = "") -> list[str]:
        return ["--user", f"{CALLER}:{CALLER}", "--network", network, "-v", f"{self.path}:/workspace{mount}", *options]

    def run(
        self, *command: str, options: tuple[str, ...] = (), network: str = "none", mount: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Returns what a container of the image did and said; it has no network unless one is named."""
        return _docker("run", "--rm", *self.options(*options, network=network, mount=mount), self.image, *command)

    def runs(self) -> list[Path]:
        """Returns the run directories, oldest first."""
        return sorted((self.path / "artifacts/runs").iterdir())


@pytest.fixture(scope="session")
def image() -> str:
    """The image that `make test-image` built."""
    return f"{os.environ.get('IMAGE', 'grpo-gsm8k')}:{os.environ.get('VARIANT', 'cpu')}"


@pytest.fixture(scope="session")
def new_workspace(image: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    def make() -> Workspace:
        folder = tmp_path_factory.mktemp("workspace")
        os.chown(folder, CALLER, CALLER)
        return Workspace(folder, image)

    return make


@pytest.fixture
def workspace(new_workspace: Callable[[], Workspace]) -> Workspace:
    """An empty workspace."""
    return new_workspace()


@pytest.fixture
def container() -> Iterator[str]:
    """A name for a container, which is removed in the end."""
    name = f"grpo-gsm8k-test-{uuid.uuid4().hex[:8]}"
    yield name
    _docker("rm", "--force", name)


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """tests/hub_server.py."""
    spec = importlib.util.spec_from_file_location("image_hub_server", Path(__file__).resolve().parents[1] / "hub_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["image_hub_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def docker() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs docker and returns what it did and said."""
    return _docker
