"""Solar cells, functional or defective: ViG-T from scratch on 1,968 photographs, one device.

    pip install elpv-dataset      # 91 MB; CC-BY-NC-SA 4.0: not for commercial use
    python train.py --config=configs/elpv.py

Electroluminescence photographs of 300 x 300 pixels; 656 are held out (a quarter, as in the paper).
A cell is defective if the experts' probability of it is at least 1/2. Metrics are accuracy (top1)
and F1 of the defective class (f1). Published, on another quarter and with another rule for the
doubtful cells: accuracy 82.4 % (SVM) and 88.4 % (VGG-19 from ImageNet; Deitsch et al. 2019).
The values below are a start, not tuned.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("elpv")
