"""Generated IHC patches and small twins of the ten datasets: nothing here is a real image."""

from his2lip.data.synthetic.patch import Spec, render
from his2lip.data.synthetic.twins import twin_names, twin_patches, write_twin

__all__ = ["Spec", "render", "twin_names", "twin_patches", "write_twin"]
