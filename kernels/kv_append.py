"""Write new keys and values into their slots of the paged cache.

Slot s is block s // block_size, row s % block_size. Every slot is written at most once per call.
"""

from __future__ import annotations

from torch import Tensor


def kv_append_reference(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """key, value (N, heads, D); slot_mapping (N,) int64.

    The caches (blocks, block_size, heads, D) are changed in place.
    """
    key_cache.view(-1, *key.shape[1:]).index_copy_(0, slot_mapping, key.to(key_cache.dtype))
    value_cache.view(-1, *value.shape[1:]).index_copy_(0, slot_mapping, value.to(value_cache.dtype))
