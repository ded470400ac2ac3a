"""Check the quantization settings of a config before any weight is read."""

import copy

from transformers import PreTrainedConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING


def check_quantization(config: PreTrainedConfig) -> None:
    """Raise a ValueError if a config names a quantization method that transformers does not know.

    transformers only warns, and reads the quantized numbers as if they were weights.
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
            continue  # a known method whose library is missing; loading the weights reports that
        except Exception as error:  # each method has its own errors for invalid values
            method = said.get("quant_method")
            raise ValueError(
                f"quantization_config with quant_method {method!r} cannot be used ({error}); known are {known}"
            ) from error
