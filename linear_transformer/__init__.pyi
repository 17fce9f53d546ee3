"""Public names; `__init__.py` imports each name at its first use."""

from linear_transformer.models.classifier import (
    Classifier as Classifier,
    ClassifierConfig as ClassifierConfig,
)
from linear_transformer.models.language_model import LanguageModel as LanguageModel
from linear_transformer.models.language_model_config import (
    LanguageModelConfig as LanguageModelConfig,
)
from linear_transformer.nn.layers.efficient_attention_2d import (
    EfficientAttention2D as EfficientAttention2D,
)
from linear_transformer.nn.mixers.adaptive_span import AdaptiveSpan as AdaptiveSpan
from linear_transformer.nn.mixers.bigbird import BigBird as BigBird
from linear_transformer.nn.mixers.cosformer import CosFormer as CosFormer
from linear_transformer.nn.mixers.delta_net import DeltaNet as DeltaNet
from linear_transformer.nn.mixers.diag_attention import DiagAttention as DiagAttention
from linear_transformer.nn.mixers.efficient_attention import (
    EfficientAttention as EfficientAttention,
)
from linear_transformer.nn.mixers.forgetting_attention import (
    ForgettingAttention as ForgettingAttention,
)
from linear_transformer.nn.mixers.gated_attention_unit import (
    Flash as Flash,
    FlashQuad as FlashQuad,
)
from linear_transformer.nn.mixers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from linear_transformer.nn.mixers.gated_delta_net_2 import GatedDeltaNet2 as GatedDeltaNet2
from linear_transformer.nn.mixers.gated_linear_attention import (
    GatedLinearAttention as GatedLinearAttention,
)
from linear_transformer.nn.mixers.gated_slot_attention import (
    GatedSlotAttention as GatedSlotAttention,
)
from linear_transformer.nn.mixers.hgrn2 import HGRN2 as HGRN2
from linear_transformer.nn.mixers.kimi_delta_attention import (
    KimiDeltaAttention as KimiDeltaAttention,
)
from linear_transformer.nn.mixers.learned_feature_maps import (
    T2R as T2R,
    Hedgehog as Hedgehog,
    ReBased as ReBased,
)
from linear_transformer.nn.mixers.lightning import LightningAttention as LightningAttention
from linear_transformer.nn.mixers.linear_attention import LinearAttention as LinearAttention
from linear_transformer.nn.mixers.linformer import Linformer as Linformer
from linear_transformer.nn.mixers.lion import Lion as Lion
from linear_transformer.nn.mixers.local_convolution import LocalConvolution as LocalConvolution
from linear_transformer.nn.mixers.log_linear import LogLinearAttention as LogLinearAttention
from linear_transformer.nn.mixers.log_linear_mamba2 import LogLinearMamba2 as LogLinearMamba2
from linear_transformer.nn.mixers.longformer import Longformer as Longformer
from linear_transformer.nn.mixers.lru import LRU as LRU
from linear_transformer.nn.mixers.lsh_attention import LSHAttention as LSHAttention
from linear_transformer.nn.mixers.mamba import Mamba as Mamba
from linear_transformer.nn.mixers.mamba2 import Mamba2 as Mamba2
from linear_transformer.nn.mixers.mamba3 import Mamba3 as Mamba3
from linear_transformer.nn.mixers.mlstm import MLSTM as MLSTM
from linear_transformer.nn.mixers.nystromformer import Nystromformer as Nystromformer
from linear_transformer.nn.mixers.performer import Performer as Performer
from linear_transformer.nn.mixers.random_feature_attention import (
    RandomFeatureAttention as RandomFeatureAttention,
)
from linear_transformer.nn.mixers.rectified_attention import (
    RectifiedAttention as RectifiedAttention,
)
from linear_transformer.nn.mixers.registry import (
    MIXERS as MIXERS,
    make_mixer as make_mixer,
)
from linear_transformer.nn.mixers.retnet import Retention as Retention
from linear_transformer.nn.mixers.rg_lru import RGLRU as RGLRU
from linear_transformer.nn.mixers.rwkv6 import RWKV6 as RWKV6
from linear_transformer.nn.mixers.rwkv7 import RWKV7 as RWKV7
from linear_transformer.nn.mixers.sinkhorn import SinkhornAttention as SinkhornAttention
from linear_transformer.nn.mixers.slstm import SLSTM as SLSTM
from linear_transformer.nn.mixers.softmax_attention import SoftmaxAttention as SoftmaxAttention
from linear_transformer.nn.mixers.sparse_transformer import SparseTransformer as SparseTransformer
from linear_transformer.nn.mixers.synthesizer import Synthesizer as Synthesizer
from linear_transformer.nn.mixers.transformer_xl import TransformerXL as TransformerXL
from linear_transformer.ops.additive import linear_attention as linear_attention
from linear_transformer.ops.block_local import block_local_attention as block_local_attention
from linear_transformer.ops.decay import decayed_attention as decayed_attention
from linear_transformer.ops.delta import (
    delta_attention as delta_attention,
    delta_product as delta_product,
    erase_delta_attention as erase_delta_attention,
    low_rank_delta_attention as low_rank_delta_attention,
)
from linear_transformer.ops.efficient import (
    efficient_attention as efficient_attention,
    non_local_attention as non_local_attention,
    scaled_efficient_attention as scaled_efficient_attention,
)
from linear_transformer.ops.feature_maps import elu_plus_one as elu_plus_one
from linear_transformer.ops.hashing import lsh_attention as lsh_attention
from linear_transformer.ops.log_linear import log_linear_attention as log_linear_attention
from linear_transformer.ops.mixed_chunk import mixed_chunk_attention as mixed_chunk_attention
from linear_transformer.ops.random_features import log_feature_attention as log_feature_attention
from linear_transformer.ops.rectified import rectified_attention as rectified_attention
from linear_transformer.ops.relative import relative_attention as relative_attention
from linear_transformer.ops.selective_scan import (
    diagonal_scan as diagonal_scan,
    selective_scan as selective_scan,
)
from linear_transformer.ops.slstm import slstm as slstm
from linear_transformer.ops.softmax import softmax_attention as softmax_attention
from linear_transformer.ops.sparse_softmax import block_sparse_attention as block_sparse_attention

__version__: str
