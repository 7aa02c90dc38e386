"""Every command and every Python example in the README and docs runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from edgekit.bundle import Bundle
from edgekit.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind):
    """(page, text) of the fenced blocks of one kind."""
    return [
        (page.name, text)
        for page in PAGES
        for text in re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder that holds what the examples name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "examples").mkdir()
    for name in ("digits_vit", "digits.yaml", "digits.py"):
        (folder / "examples" / name).symlink_to(ROOT / "examples" / name)
    write_digits(folder)
    write_models(folder)
    return folder


def write_digits(folder):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    digits.write(folder / "examples" / "digits")
    photos = sorted((folder / "examples/digits/evaluation").rglob("*.png"))[::36]
    (folder / "photos").mkdir()
    for photo in photos:
        (folder / "photos" / photo.name).symlink_to(photo)


def write_models(folder):
    from safetensors.torch import save_file

    from edgekit import families

    deit = families.load("timm/deit_tiny_patch16_224", families.Options(random_weights=True))
    save_file(dict(deit.module.state_dict()), folder / "w.safetensors")
    tiny.save("jamba", folder)
    words = np.random.default_rng(0).integers(2, tiny.VOCABULARY, (12, 40))
    np.savez(folder / "prompts.npz", input_ids=words)
    normal = np.random.default_rng(0).standard_normal
    np.savez(folder / "clips.npz", x=normal((4, 98, 40)).astype(np.float32))
    np.save(folder / "images.npy", normal((32, 1, 32, 32)).astype(np.float32))
    np.save(folder / "samples.npy", normal((8, 8)).astype(np.float32))
    (source,) = [text for _, text in blocks("python") if text.startswith("# mymodels.py")]
    (folder / "mymodels.py").write_text(source)
    namespace: dict[str, object] = {}
    exec(compile(source, "mymodels.py", "exec"), namespace)
    save_file(dict(namespace["tiny"]().module.state_dict()), folder / "tiny.safetensors")


def test_commands(desk):
    commands = [line for _, text in blocks("sh") for line in text.splitlines() if line]
    assert len(commands) > 5
    for command in commands:
        words = command.split()
        assert words[0] == "edgekit"
        run = [sys.executable, "-m", "edgekit", *words[1:]]
        done = subprocess.run(run, cwd=desk, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_shipped_checkpoint_keeps_its_accuracy_in_int8(desk):
    """``test_commands`` has built it."""
    manifest = Bundle.open(desk / "bundle").manifest
    assert manifest.model["top1"] >= 0.97
    judged = [row.top1 for row in manifest.rows if row.drift is not None]
    assert len(judged) == 4
    assert min(judged) >= manifest.model["top1"] - 0.01


def test_python_examples(desk):
    for page, text in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=desk, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{page}\n{text}\n{done.stderr}"


def test_recipe_page_names_every_field():
    page = (ROOT / "docs/recipe.md").read_text()
    table = page.partition("## Data")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(Recipe.model_fields)


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_tree_in_readme_is_the_tree_on_disk():
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2]
    for name in re.findall(r"^  (\S+\.py|\S+/)", tree, re.M):
        assert list(ROOT.rglob(name.rstrip("/"))), name
