"""The encoder prompt: a frozen language model reads the genes of a cell. The door of this room."""

from scvec.encoders.prompt.prompt_encoder import PromptEncoder
from scvec.encoders.prompt.prompt_options import ORDERS, PromptOptions
from scvec.encoders.prompt.slots import ranked

__all__ = ["ORDERS", "PromptEncoder", "PromptOptions", "ranked"]
