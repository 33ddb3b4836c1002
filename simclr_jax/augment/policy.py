"""What is done to an image to make one view of it: the recipe, without any randomness."""

from __future__ import annotations

import dataclasses

from simclr_jax.errors import UserError, choose

CROP_LAWS = ("height", "area", "area_cut")  # see `draws.crop_box`
GRIDS = ("corner", "half_pixel", "antialias")  # that operations here resize by
BRIGHTNESS_MODES = ("multiply", "add")
PRECISIONS = ("float32", "bfloat16_3x", "bfloat16")  # of products, see `products.py`
DTYPES = ("float32", "bfloat16")  # of images between operations


@dataclasses.dataclass(frozen=True)
class Policy:
    """Describe the augmentation of one view; hashable, so it can be static under `jax.jit`.

    The defaults are SimCLR's at colour strength 1; strength s multiplies the four maximum
    strengths by s. Order: crop and resize, flip, colour jitter, grayscale, blur, solarize. A
    probability or a strength of 0 leaves the operation out of the program altogether.

    Raises `UserError` at construction for a value outside its range.
    Source: SimCLR appendix A; official `data_util.py: preprocess_for_train, batch_random_blur`;
    BYOL appendix B for solarize.
    """

    size: int  # height and width of the view, pixels
    crop: bool = True  # False: the whole image, resized if it has another size
    area: tuple[float, float] = (0.08, 1.0)  # of the crop, as a fraction of the image
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # of the crop, width / height
    crop_law: str = "height"  # how crops are drawn: "height", "area" or "area_cut"
    # Of the law "height": crops below this fraction of the image are drawn again.
    min_object_covered: float = 0.1
    grid: str = "corner"  # the resize law, see `resize.py`; "opencv": resized before, on the host
    clip_resized: bool = False  # to [0, 1] at once (BYOL), not after the first colour operation
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of all four colour operations together
    brightness: float = 0.8  # maximum strengths: factors come from 1 - strength .. 1 + strength
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2  # turns of the colour circle, either way
    brightness_mode: str = "multiply"  # "add" (-strength .. strength) made the v1 paper's numbers
    grayscale: float = 0.2  # probability, independent of the jitter
    blur: float = 0.5  # probability; the kernel spans a tenth of `size`
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.0  # probability
    solarize_threshold: float = 0.5  # values from here on are inverted
    grayscale_first: bool = False  # before the jitter (InstDisc, MoCo v1), not after it
    # How exact the device is: in the products of crop and blur, and in what it keeps of an image
    # between two operations. "float32" is the image's own type, where that is float64.
    precision: str = "float32"
    dtype: str = "float32"

    def __post_init__(self):
        # Recipes may hand over lists, which cannot be hashed.
        for name in ("area", "aspect", "blur_sigma"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.size < 1:
            raise UserError(f"augmentation size is {self.size}: give at least 1 pixel")
        choose("augmentation grid", self.grid, (*GRIDS, "opencv"))
        choose("augmentation crop_law", self.crop_law, CROP_LAWS)
        choose("augmentation brightness_mode", self.brightness_mode, BRIGHTNESS_MODES)
        choose("augmentation precision", self.precision, PRECISIONS)
        choose("augmentation dtype", self.dtype, DTYPES)
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            self._check_number(name, 1.0, "a probability")
        self._check_number("min_object_covered", 1.0, "a fraction of the image")
        self._check_number("solarize_threshold", 1.0, "a pixel's value")
        self._check_number("brightness", float("inf"), "a strength")
        # Above 1 the factor could be negative and invert the image.
        self._check_number("contrast", 1.0, "a strength")
        self._check_number("saturation", 1.0, "a strength")
        self._check_number("hue", 0.5, "turns of the colour circle")
        self._check_range("area", 1.0, "fractions of the image")
        self._check_range("aspect", float("inf"), "ratios width / height")
        self._check_range("blur_sigma", float("inf"), "pixels")

    def _check_number(self, name: str, most: float, meaning: str):
        value = getattr(self, name)
        if not 0 <= value <= most:
            raise UserError(f"augmentation {name} is {value}: give {meaning} from 0 to {most:g}")

    def _check_range(self, name: str, most: float, meaning: str):
        value = getattr(self, name)
        if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
            limit = "" if most == float("inf") else f" <= {most:g}"
            raise UserError(
                f"augmentation {name} is {value}: give two {meaning}, 0 < low <= high{limit}"
            )
