"Package metadata comes from settings.ini, the one place nbdev reads too."

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
readme = here / "README.md"

# Below data/: what commands read wherever they run. An installed package holds it in natrig_nb/shipped.
SHIPPED = (
    "portraits-generator.safetensors",
    "portraits-attributes.safetensors",
    "portraits-yshape.safetensors",
    "portraits-diffusion/**/*",
    "results/*/results.parquet",
    "results/zoo/*.json",
    "results/zoo/*.csv",
)


def shipped_files():
    "Files below data/ that a wheel carries."
    found = sorted(path for pattern in SHIPPED for path in (here / "data").glob(pattern))
    return [path for path in found if path.is_file()]


class BuildWithData(build_py):
    "Put shipped files into the package; an editable installation reads them in the checkout."

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for path in shipped_files():
            target = Path(self.build_lib, "natrig_nb/shipped", path.relative_to(here / "data"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

EXTRAS = ("ray", "timm", "datasets", "pretrained", "docs", "dev")


def extra(name):
    "Requirements of an optional part."
    return cfg[f"{name}_requirements"].split()


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    url=cfg["git_url"],
    packages=find_packages(include=["natrig_nb", "natrig_nb.*"]),
    package_data={"natrig_nb": ["py.typed"], "natrig_nb.report": ["templates/*"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={name: extra(name) for name in EXTRAS},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    cmdclass={"build_py": BuildWithData},
)
