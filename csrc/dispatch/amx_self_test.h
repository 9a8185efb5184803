// One tile product, compared with the exact result.
#pragma once

namespace gossamer {

// Only to be called where AMX is announced and granted. False when the product is wrong or the instruction is refused.
bool amx_self_test();

}  // namespace gossamer
