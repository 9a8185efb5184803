// A list of one kernel in place of the generated one: linked into a test before the library, it sends everything, linear() included,
// through a kernel that is emulated. GOSSAMER_TEST_ISA is what the emulation needs of the machine.
#include "dispatch/lists.h"

namespace gossamer {

extern const GOSSAMER_TEST_TYPE GOSSAMER_TEST_KERNEL;

std::span<const GOSSAMER_TEST_TYPE* const> GOSSAMER_TEST_LIST() {
    static const GOSSAMER_TEST_TYPE kernel = [] {
        GOSSAMER_TEST_TYPE copy = GOSSAMER_TEST_KERNEL;
        copy.isa = Isa::GOSSAMER_TEST_ISA;
        return copy;
    }();
    static const GOSSAMER_TEST_TYPE* const list[] = {&kernel};
    return list;
}

}  // namespace gossamer
