from .dataset import PrepareReport as PrepareReport
from .dataset import prepare as prepare
from .privacy import NameMap as NameMap
