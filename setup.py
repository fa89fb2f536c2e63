"""What `setup.cfg` cannot say: the README as an index shows it, where links between files lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
# Pictures go, links leave their text behind.
readme = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)", "", readme)
readme = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)
setup(long_description=readme, long_description_content_type="text/markdown")
