"""Configuration: ml_collections on the outside, frozen and checked dataclasses on the inside.

``configs/*.py`` build a ``ConfigDict`` with ``to_config_dict(Config())`` plus their changes;
``from_config_dict`` turns it back and refuses unknown, missing, mistyped and inconsistent values,
naming the key. Every size of the model is here; nothing is read from anywhere else.
"""

from rb_jax.config import files as files
from rb_jax.config.convert import check_key as check_key
from rb_jax.config.convert import differing_keys as differing_keys
from rb_jax.config.convert import from_config_dict as from_config_dict
from rb_jax.config.convert import from_stored as from_stored
from rb_jax.config.convert import from_values as from_values
from rb_jax.config.convert import to_config_dict as to_config_dict
from rb_jax.config.group import ConfigError as ConfigError
from rb_jax.config.model import AutoencoderConfig as AutoencoderConfig
from rb_jax.config.model import CLIPTextConfig as CLIPTextConfig
from rb_jax.config.model import CLIPVisionConfig as CLIPVisionConfig
from rb_jax.config.model import CMEConfig as CMEConfig
from rb_jax.config.model import FRCEConfig as FRCEConfig
from rb_jax.config.model import MLLMConfig as MLLMConfig
from rb_jax.config.model import MMDiTConfig as MMDiTConfig
from rb_jax.config.model import ModelConfig as ModelConfig
from rb_jax.config.model import QFormerConfig as QFormerConfig
from rb_jax.config.model import RegionConfig as RegionConfig
from rb_jax.config.model import SAMConfig as SAMConfig
from rb_jax.config.schema import Config as Config
from rb_jax.config.schema import DataConfig as DataConfig
from rb_jax.config.schema import FlowConfig as FlowConfig
from rb_jax.config.schema import MeshConfig as MeshConfig
from rb_jax.config.schema import OptimizerConfig as OptimizerConfig
from rb_jax.config.schema import ProfileConfig as ProfileConfig
from rb_jax.config.schema import RematConfig as RematConfig
from rb_jax.config.schema import TrainConfig as TrainConfig
from rb_jax.config.sizes import paper_model as paper_model
