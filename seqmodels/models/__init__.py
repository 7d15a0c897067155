"""Models: blocks, patterns and stacks of them, the language model and the classifier."""

from seqmodels.models.block import BlockConfig
from seqmodels.models.classifier import ClassifierConfig, SequenceClassifier
from seqmodels.models.lm import LanguageModel, LMConfig

Model = LanguageModel | SequenceClassifier
"""What `train.loop.fit` trains; see `lm.Readout` for what they share."""
ModelConfig = LMConfig | ClassifierConfig

__all__ = [
    "BlockConfig",
    "ClassifierConfig",
    "LMConfig",
    "LanguageModel",
    "Model",
    "ModelConfig",
    "SequenceClassifier",
]
