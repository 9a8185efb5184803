// An array whose last element ends at a page that must not be touched: a read or write past it is a segmentation fault, which
// AddressSanitizer alone would not see in vector loads. All buffers that the tests hand to kernels are of this kind.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <utility>

namespace gossamer::test {

template <class T>
class Guarded {
public:
    // Filled with the byte 0xa5, so that an element nobody wrote is no likely result.
    explicit Guarded(int64_t count) : count_(count) {
        const int64_t page = sysconf(_SC_PAGESIZE), bytes = count * static_cast<int64_t>(sizeof(T));
        const int64_t data_bytes = (bytes + page - 1) / page * page;
        mapped_bytes_ = static_cast<size_t>(data_bytes + page);
        mapped_ = static_cast<char*>(mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (mapped_ == MAP_FAILED) throw std::bad_alloc();
        mprotect(mapped_ + data_bytes, static_cast<size_t>(page), PROT_NONE);
        data_ = reinterpret_cast<T*>(mapped_ + data_bytes - bytes);
        char* first = reinterpret_cast<char*>(data_);
        for (int64_t i = 0; i < bytes; ++i) first[i] = static_cast<char>(0xa5);
    }
    ~Guarded() {
        if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
    }
    Guarded(Guarded&& other) noexcept
        : mapped_(std::exchange(other.mapped_, nullptr)), mapped_bytes_(other.mapped_bytes_), data_(other.data_), count_(other.count_) {}
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    int64_t size() const { return count_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    T* begin() { return data_; }
    T* end() { return data_ + count_; }

private:
    char* mapped_;
    size_t mapped_bytes_;
    T* data_;
    int64_t count_;
};

}  // namespace gossamer::test
