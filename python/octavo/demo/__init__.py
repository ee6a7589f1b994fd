"""The demo: a small network and labelled images that ship inside the package.

The images are scikit-learn's `load_digits` (BSD-3-Clause): 8x8 scans of handwritten digits, the
test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine
Learning Repository, 1998, CC BY 4.0). The weights were trained by `examples/train_demo.py` on
images that are not among the labelled ones here.
"""

from octavo.demo.digits import Digits, DigitsNet, load_digits
from octavo.demo.run import run

__all__ = ["Digits", "DigitsNet", "load_digits", "run"]
