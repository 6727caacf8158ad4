"""Copies of the Hopper matrix product with a bug each, for the emulator to find.

Every bug is one edit of the shipped source. All copies, and one without a bug, are one unit to compile: each lives in a
namespace of its own. They have two stages and clusters of two, so that whatever is reused is reused soon.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from cuda_emulator import build

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "csrc/cuda" / name for name in ("matmul_hopper.cuh", "matmul_hopper_launch.cuh")]
INCLUDES = ("cuda/launch.h", "cuda/matmul.cuh", "cuda/ptx.cuh")


class Bug(NamedTuple):
    found: str  # what the emulator says, or "wrong" where the result is
    edits: dict[str, str]  # what is there once, and what takes its place


BUGS = {
    "stage_is_freed_before_its_products_are_done": Bug("race: writes .* read", {
        "ptx::wgmma_wait<1>();": "release<Tile>(&shared.empty[ring.stage]);",
        "if (k > 0) release<Tile>(&shared.empty[before]);": "",
        "\n    release<Tile>(&shared.empty[before]);": "",
    }),
    "products_start_before_their_stage_is_full": Bug("race: reads .* asynchronous|uninitialised", {
        "ptx::mbarrier_wait_parity(&shared.full[ring.stage], ring.phase);": "",
    }),
    "stage_is_filled_before_it_is_empty": Bug("race: writes|one arrival more", {
        "ptx::mbarrier_wait_parity(&shared.empty[ring.stage], ring.phase ^ 1);": "",
    }),
    "last_stage_is_never_freed": Bug("deadlock.*an mbarrier", {"\n    release<Tile>(&shared.empty[before]);": ""}),
    "stage_is_freed_twice_in_one_block_of_the_cluster": Bug("race", {
        "if (lane < Tile::CLUSTER) ptx::mbarrier_arrive_at(empty, lane);":
            "if (lane < Tile::CLUSTER) ptx::mbarrier_arrive(empty);",
    }),
    "one_arrival_is_missing": Bug("deadlock", {"init(&shared.full[i], 1)": "init(&shared.full[i], 2)"}),
    "fewer_bytes_are_expected_than_come": Bug("deadlock|race", {"_tx(full, BYTES)": "_tx(full, BYTES - 16)"}),
    "sums_are_read_before_they_are_there": Bug("wrong|race", {"ptx::wgmma_wait<0>();": ""}),
    "sums_start_without_a_fence": Bug("no wgmma.fence", {"ptx::wgmma_fence();": ""}),
    "panel_is_written_while_it_is_being_stored": Bug("race: writes .* read", {
        "if (lane == 0) ptx::bulk_wait_read<PANELS - 1>();": "",
    }),
    "panel_is_stored_before_all_lanes_have_written": Bug("race|uninitialised", {
        "    __syncwarp();\n    if (lane == 0) {\n": "    if (lane == 0) {\n",
    }),
    "panel_is_stored_without_a_fence": Bug("no fence.proxy.async", {"    ptx::fence_proxy_async();": "    "}),
    "block_ends_before_its_panels_are_stored": Bug("a block that has exited", {
        "if (thread % 32 == 0) ptx::bulk_wait_read<0>();": "",
    }),
    "bias_is_read_before_all_have_written_it": Bug("race|uninitialised", {
        "ptx::bar_sync(OF_CONSUMER + consumer, WARPGROUP);\n        finish": "finish",
    }),
    "block_ends_while_its_cluster_reaches_into_it": Bug("exit", {"    meet();  // no block": "    // no block"}),
    "blocks_start_before_the_cluster_has_barriers": Bug("before it was initialised|race|uninitialised", {
        "    meet();\n    if (threadIdx.x": "    if (threadIdx.x",
    }),
    "barriers_are_not_fenced": Bug("initialisation was not fenced", {"ptx::fence_mbarrier_init();": ""}),
    "descriptor_names_another_swizzle": Bug("wrong|not inside", {"SWIZZLE_128 << 62": "SWIZZLE_128 << 63"}),
}  # fmt: skip


def source(name: str, edits: dict[str, str]) -> str:
    """The kernel and its launcher in a namespace of this name, edited, with a function that calls it."""
    text = "\n".join(path.read_text() for path in SOURCES)
    for there, instead in edits.items():
        assert text.count(there) == 1, f"{name}: {text.count(there)} times in the source: {there!r}"
        text = text.replace(there, instead)
    text = re.sub(r'^#(pragma once|include ".*)$', "", text, flags=re.MULTILINE)
    text = text.replace("namespace tilegrad::cuda {", f"namespace tilegrad::cuda::{name} {{")
    return f"""{text}
extern "C" const char* run_{name}(const tilegrad::cuda::Matmul* m, int multiprocessors) {{
    using namespace tilegrad::cuda::{name};
    using Tile = TileShape<128, 2, 2>;
    return tried([&] {{ launch_hopper<Tile, false, false, __nv_bfloat16>(*m, multiprocessors, nullptr); }});
}}
"""


def unit() -> Path:
    """The file with all of them."""
    head = "\n".join(f'#include "{name}"' for name in INCLUDES) + '\n#include "tried.h"\n'
    text = head + source("sound", {}) + "".join(source(name, bug.edits) for name, bug in BUGS.items())
    path = build.CACHE / "planted_matmul.cu"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.rename(path)
    return path
