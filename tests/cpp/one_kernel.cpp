// A list of one kernel in place of the generated one: linked into a test before the library, it sends everything, linear() included,
// through a kernel that is emulated. GOSSAMER_TEST_ISA is what the emulation needs of the machine.
#include "dispatch/lists.h"

namespace gossamer {

extern const S8Kernels GOSSAMER_TEST_KERNEL;

std::span<const S8Kernels* const> s8_list() {
    static const S8Kernels kernel = [] {
        S8Kernels copy = GOSSAMER_TEST_KERNEL;
        copy.isa = Isa::GOSSAMER_TEST_ISA;
        return copy;
    }();
    static const S8Kernels* const list[] = {&kernel};
    return list;
}

}  // namespace gossamer
