from .augment import Augment as Augment
from .augment import Augmentation as Augmentation
from .batch import Batch as Batch
from .decode import decode_into as decode_into
from .train_stream import StreamOptions as StreamOptions
from .train_stream import TrainStream as TrainStream
from .train_stream import rows_with_captions as rows_with_captions
