// Memory that grows and is kept for the next call of this thread.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace gossamer {

class Workspace {
public:
    uint8_t* reserve(int64_t bytes) {
        if (bytes > capacity_) {
            memory_.reset();
            memory_.reset(static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
            capacity_ = bytes;
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    int64_t capacity_ = 0;
};

}  // namespace gossamer
