"""From a configuration to the eight parts of the reference."""

from torch import nn

from ..config import NanoEmoXConfig
from .audio import AudioEncoder
from .face import FaceEncoder, FaceHead
from .fusion import build_fusion
from .language import LanguageModel
from .qformer import build_branch
from .vision import VisionEncoder


def reference_parts(config: NanoEmoXConfig) -> dict[str, nn.Module]:
    """The eight parts in plain PyTorch with random weights, by name; modules.parts has their interfaces."""
    width = config.language.hidden_size
    visual, audio = config.vision.hidden_size, config.audio.hidden_size
    return {
        "vision": VisionEncoder(config.vision),
        "audio": AudioEncoder(config.audio),
        "face": FaceEncoder(config.face),
        "face_head": FaceHead(config.face, width),
        "video_branch": build_branch(config.video_branch, config.qformer, visual, width),
        "audio_branch": build_branch(config.audio_branch, config.qformer, audio, width),
        "fusion": build_fusion(config.fusion, config.qformer, len(config.vision.taps), audio, visual, width),
        "language": LanguageModel.from_config(config.language, config.lora),
    }
