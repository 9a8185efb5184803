// Detection, forcing and selection. Run with GOSSAMER_ISA unset, set to each name, and set to nonsense.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/cpu.h"
#include "gossamer/roofline.h"

namespace gossamer::test {
namespace {

std::vector<std::string> available_names() {
    std::vector<std::string> names;
    for (const std::string& name : isa_names()) {
        for (int i = 0; i < kIsaCount; ++i) {
            if (name == isa_name(static_cast<Isa>(i)) && isa_available(static_cast<Isa>(i))) names.push_back(name);
        }
    }
    return names;
}

// What the environment asked for holds until something is forced.
void test_environment(const std::string& wanted) {
    const std::vector<std::string> names = available_names();
    if (wanted.empty()) {
        check(isa_name(isa_active()) == names.back(), "the best available ISA is active");
    } else if (wanted == "nonsense") {
        check_throws<std::invalid_argument>([] { isa_active(); }, "unknown name 'nonsense'; this machine can run: scalar");
    } else {
        check(isa_name(isa_active()) == wanted, "GOSSAMER_ISA=" + wanted + " is active");
    }
}

void test_forcing() {
    const std::vector<std::string> names = available_names();
    check(names.front() == "scalar", "scalar is always there");
    for (const std::string& name : isa_names()) {
        bool known = false;
        for (const std::string& available : names) known = known || available == name;
        if (known) {
            isa_force(name);
            check(isa_name(isa_active()) == name, "forced " + name);
        } else {
            check_throws<std::runtime_error>([&] { isa_force(name); }, "this machine cannot run '" + name + "'");
        }
    }
    check_throws<std::invalid_argument>([] { isa_force("sse9"); }, "unknown name 'sse9'");
    isa_force("");
    check(isa_name(isa_active()) == names.back(), "an empty name returns to the best");
}

template <class Kernels>
void check_list(std::span<const Kernels* const> list, const std::string& family) {
    check(!list.empty() && list.back()->isa == Isa::scalar, family + ": ends in scalar");
    for (size_t i = 1; i < list.size(); ++i) check(list[i - 1]->isa > list[i]->isa, family + ": best first");
    for (int i = 0; i < kIsaCount; ++i) {
        const Isa limit = static_cast<Isa>(i), got = select_kernels(list, limit).isa;
        check(got <= limit && isa_available(got), family + ": selects one that is allowed and available");
    }
}

// Lists without scalar: nothing is found below `lowest`, and what is found is allowed and available.
template <class Kernels>
void check_list_without_scalar(std::span<const Kernels* const> list, Isa lowest, const std::string& family) {
    for (size_t i = 1; i < list.size(); ++i) check(list[i - 1]->isa > list[i]->isa, family + ": best first");
    for (int i = 0; i < kIsaCount; ++i) {
        const Isa limit = static_cast<Isa>(i);
        const Kernels* got = find_kernels(list, limit);
        const std::string what = family + " up to " + isa_name(limit);
        if (limit < lowest) check(got == nullptr, what + ": none");
        if (limit == lowest) check((got != nullptr) == isa_available(limit), what + ": where the machine has it");
        if (got != nullptr) check(got->isa <= limit && isa_available(got->isa), what + ": allowed and available");
    }
}

void test_roofline() {
    const std::vector<std::string> names = peak_instructions();
    const std::pair<const char*, Isa> brought_by[] = {{"fma-f32", Isa::avx2},
                                                      {"expand-int8", Isa::avx512vbmi2},
                                                      {"avx512-bf16", Isa::avx512bf16},
                                                      {"amx-int8", Isa::amx},
                                                      {"amx-bf16", Isa::amx}};
    for (const auto& [name, isa] : brought_by) {
        check((std::count(names.begin(), names.end(), name) == 1) == isa_available(isa), std::string(name) + ": where the machine has it");
    }
    for (const std::string& instruction : peak_instructions()) {
        check(peak_ops(instruction, 1, 0.001) > 1e8, instruction + ": a plausible peak");
    }
    check(read_bandwidth(1 << 16, 2, 0.001) > 1e7, "a plausible bandwidth");
    check_throws<std::invalid_argument>([] { peak_ops("mmx", 1, 0.001); }, "instruction: got 'mmx'");
    check_throws<std::invalid_argument>([] { read_bandwidth(1, 1, 0.001); }, "buffer_bytes: got 1");
}

void test_info() {
    const auto info = cpu_info();
    for (const char* key : {"processor", "amx", "thread runtime", "compiler"}) check(info.count(key) == 1 && !info.at(key).empty(), key);
    check((info.at("amx") == "available") == isa_available(Isa::amx), "amx: available, or the reason why not");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    const char* wanted = std::getenv("GOSSAMER_ISA");
    test_environment(wanted == nullptr ? "" : wanted);
    test_forcing();
    check_list(gossamer::s8_list(), "s8");
    check_list(gossamer::f32_list(), "f32");
    check_list(gossamer::epilogue_list(), "epilogue");
    check_list(gossamer::quantize_list(), "quantize");
    check_list(gossamer::convert_list(), "convert");
    check_list(gossamer::four_bit_list(), "four_bit");
    check_list(gossamer::int8_expand_list(), "int8_expand");
    check_list(gossamer::fp8_expand_list(), "fp8_expand");
    check_list(gossamer::bf16_expand_list(), "bf16_expand");
    check_list_without_scalar(gossamer::bf16_list(), gossamer::Isa::avx512bf16, "bf16");
    check_list_without_scalar(gossamer::u4_list(), gossamer::Isa::avx2, "u4");
    test_roofline();
    test_info();
    return finish();
}
