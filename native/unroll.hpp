// Loops whose indices are constants of the compiler, so that arrays indexed by them become registers.
#pragma once

#include <type_traits>
#include <utility>

namespace shvit {

template <typename Body, int... I>
inline __attribute__((always_inline)) void each_of(const Body& body, std::integer_sequence<int, I...>) {
    (body(std::integral_constant<int, I>()), ...);
}

// Call `body` with 0 to COUNT - 1.
template <int COUNT, typename Body>
inline __attribute__((always_inline)) void each(const Body& body) {
    each_of(body, std::make_integer_sequence<int, COUNT>());
}

}  // namespace shvit
