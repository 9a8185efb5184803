// What this machine can run, and what dispatch is allowed to use.
//
// Dispatch takes, for each family of kernels, the best one whose ISA is available and not above the active ISA. The active ISA
// is the best available one, or the one named by the environment variable GOSSAMER_ISA, or the one last forced.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/isa.h"

namespace gossamer {

const char* isa_name(Isa isa);
std::vector<std::string> isa_names();
bool isa_available(Isa isa);

// Throws std::invalid_argument for an unknown name and std::runtime_error for one this machine lacks, naming those it has.
Isa isa_from_name(std::string_view name);

Isa isa_active();
// An empty name returns to the best available ISA.
void isa_force(std::string_view name);

// For bug reports: processor, feature bits, why AMX is or is not used, thread runtime, compiler.
std::map<std::string, std::string> cpu_info();

}  // namespace gossamer
