from .layouts import layout_names as layout_names
from .rehearsal import write_rehearsal as write_rehearsal
from .twins import process_mapper as process_mapper
from .twins import twin_names as twin_names
from .twins import twin_view as twin_view
from .twins import write_twin as write_twin
