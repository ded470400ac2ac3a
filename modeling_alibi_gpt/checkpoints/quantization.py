"""What a config says of quantised weights, checked before any of them is read."""

import copy

from transformers import PreTrainedConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING


def check_quantization(config: PreTrainedConfig) -> None:
    """Raise a ValueError where a config names a quantisation that transformers does not know.

    transformers warns and reads the quantised numbers as if they were weights.
    """
    for section in (config, config.get_text_config(decoder=True)):
        said = getattr(section, "quantization_config", None)
        if said is None:
            continue
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        if not isinstance(said, dict):
            raise ValueError(f"quantization_config must be a mapping, got {said!r}")
        try:
            AutoQuantizationConfig.from_dict(copy.deepcopy(said))
        except ImportError:
            continue  # the quantisation is known, its library is missing: whoever loads the weights says so
        except Exception as error:  # each quantisation fails at wrong values in its own way
            method = said.get("quant_method")
            raise ValueError(
                f"quantization_config with quant_method {method!r} cannot be used ({error}); known are {known}"
            ) from error
