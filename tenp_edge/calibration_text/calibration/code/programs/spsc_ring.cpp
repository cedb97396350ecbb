// Bounded single-producer single-consumer queue without locks.
// One slot is kept empty so that head == tail can mean "empty".
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <optional>
#include <thread>
#include <utility>

template <typename T, std::size_t N>
class SpscRing {
    static_assert(N >= 2 && (N & (N - 1)) == 0, "capacity must be a power of two");

public:
    bool push(T value) {
        const auto tail = tail_.load(std::memory_order_relaxed);
        const auto next = (tail + 1) & (N - 1);
        if (next == head_.load(std::memory_order_acquire))
            return false;  // full
        slots_[tail] = std::move(value);
        tail_.store(next, std::memory_order_release);  // publishes the slot
        return true;
    }

    std::optional<T> pop() {
        const auto head = head_.load(std::memory_order_relaxed);
        if (head == tail_.load(std::memory_order_acquire))
            return std::nullopt;
        T value = std::move(slots_[head]);
        head_.store((head + 1) & (N - 1), std::memory_order_release);
        return value;
    }

private:
    std::array<T, N> slots_{};
    // Separate cache lines: otherwise each push invalidates the reader's copy
    // of head_ and the two cores spend their time passing the line around.
    alignas(64) std::atomic<std::size_t> head_{0};
    alignas(64) std::atomic<std::size_t> tail_{0};
};

int main() {
    constexpr std::uint64_t kCount = 200'000;
    SpscRing<std::uint64_t, 1024> ring;

    std::thread producer([&] {
        for (std::uint64_t i = 1; i <= kCount; ++i)
            while (!ring.push(i))
                std::this_thread::yield();
    });

    std::uint64_t expected = 1, sum = 0;
    while (expected <= kCount) {
        if (auto v = ring.pop()) {
            if (*v != expected) {
                std::cerr << "out of order: " << *v << " instead of " << expected << '\n';
                return 1;
            }
            sum += *v;
            ++expected;
        } else {
            std::this_thread::yield();
        }
    }
    producer.join();
    std::cout << sum << (sum == kCount * (kCount + 1) / 2 ? " correct\n" : " WRONG\n");
}
