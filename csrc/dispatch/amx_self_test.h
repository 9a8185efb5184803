// One tile product of int8 and one of bf16, compared with the exact results.
#pragma once

namespace gossamer {

// Only to be called where AMX is announced and granted. False when a product is wrong or the instruction is refused.
bool amx_self_test();

}  // namespace gossamer
