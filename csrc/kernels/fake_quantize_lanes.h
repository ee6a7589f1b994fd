// Fake quantization over sixteen lanes: the loops that all vector ISAs share. Included by
// isa/*/fake_quantize.cpp, each of which brings a struct L with its vectors; everything has
// internal linkage. isa/scalar/fake_quantize.cpp says what every result is.
//
// L gives: F (sixteen floats), M (sixteen truth values), D (sixteen doubles), and
//   set(v), load(const T* [, count]), store(T*, F [, count]), stream(T*, F): T = float, Bf16, F16;
//     with count < 16, lanes beyond it are loaded as 0 and not stored
//   add, sub, mul; above(bound, v) and below(bound, v): maximum and minimum, v where it is NaN
//   ge, le, gt, lt: false for NaN; both(m, m), either(m, m); keep(m, v): v or +0;
//     choose(m, a, b): a or b; bits(m) and truth(bits): bit i for lane i
//   zeros(), gather(D, F): adds; sums(const double*, count) and spill(D, double*, count): the first
//     of sixteen doubles
//   Nearest(table): a callable that gives each t its level, NaN where t is NaN
#pragma once

#include <cstddef>
#include <cstdint>

#include "fake_quantize_table.h"

namespace octavo {
namespace {

/// One rule in registers, or sixteen columns' rules.
template <class L>
struct LaneRule {
  using F = typename L::F;
  F inverse, scale, lo, hi, in_lo, in_hi;

  explicit LaneRule(const FakeRule& r)
      : inverse(L::set(r.inverse)),
        scale(L::set(r.scale)),
        lo(L::set(r.lo)),
        hi(L::set(r.hi)),
        in_lo(L::set(r.in_lo)),
        in_hi(L::set(r.in_hi)) {}
  LaneRule(const FakeColumns& r, int64_t c)
      : inverse(L::load(r.inverse + c)),
        scale(L::load(r.scale + c)),
        lo(L::load(r.lo + c)),
        hi(L::load(r.hi + c)),
        in_lo(L::load(r.in_lo + c)),
        in_hi(L::load(r.in_hi + c)) {}
};

/// Nearest, ties to even, for |v| < 2^22; +0 for 0.
template <class L>
inline typename L::F rne(typename L::F v) {
  const typename L::F magic = L::set(0x1.8p23f);
  return L::sub(L::add(v, magic), magic);
}

template <class L, bool kRelu>
inline typename L::F scaled(typename L::F x, const LaneRule<L>& r) {
  if (kRelu) x = L::above(L::set(0.0f), x);
  return L::mul(x, r.inverse);
}

template <class L>
inline typename L::F code(typename L::F t, const LaneRule<L>& r) {
  return rne<L>(L::below(r.hi, L::above(r.lo, t)));
}

template <class L, bool kRelu>
inline typename L::M passes(typename L::F x, typename L::F t, const LaneRule<L>& r) {
  if (kRelu) return L::both(L::gt(x, L::set(0.0f)), L::le(t, r.in_hi));
  return L::both(L::ge(t, r.in_lo), L::le(t, r.in_hi));
}

inline void store_bits(uint8_t* mask, uint32_t bits, int64_t count) {
  const auto two = static_cast<uint16_t>(bits);
  __builtin_memcpy(mask, &two, count > 8 ? 2 : 1);
}

inline uint32_t load_bits(const uint8_t* mask, int64_t count) {
  uint16_t two = 0;
  __builtin_memcpy(&two, mask, count > 8 ? 2 : 1);
  return two;
}

/// Runs f(i, count) over blocks of sixteen and f(i, rest) over what remains; whole blocks have a
/// count that the compiler knows.
template <class Whole, class Rest>
inline void for_blocks(int64_t count, Whole&& whole, Rest&& rest) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + 16 <= count; i += 16) whole(i);
  if (i < count) rest(i, count - i);
}

template <class L, class T, bool kRelu, bool kMask, bool kStream>
inline void run_as(const T* x, int64_t count, const FakeRule& rule, T* y, uint8_t* mask) {
  const LaneRule<L> r(rule);
  for_blocks(
      count,
      [&](int64_t i) {
        const typename L::F v = L::load(x + i);
        const typename L::F t = L::mul(v, r.inverse);
        const typename L::F out = L::mul(code<L>(t, r), r.scale);
        if (kMask) store_bits(mask + i / 8, L::bits(passes<L, kRelu>(v, t, r)), 16);
        if (kStream) {
          L::stream(y + i, out);
        } else {
          L::store(y + i, out);
        }
      },
      [&](int64_t i, int64_t some) {
        const typename L::F v = L::load(x + i, some);
        const typename L::F t = L::mul(v, r.inverse);
        if (kMask) {
          const uint32_t used = (1u << some) - 1;
          store_bits(mask + i / 8, L::bits(passes<L, kRelu>(v, t, r)) & used, some);
        }
        L::store(y + i, L::mul(code<L>(t, r), r.scale), some);
      });
}

// max(x, 0) needs no step of its own here: the driver's lo is 0 then.
template <class L, class T>
void run(const void* from, int64_t count, const FakeRule& rule, void* to, uint8_t* mask,
         bool stream) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  if (mask == nullptr) {
    if (stream) {
      run_as<L, T, false, false, true>(x, count, rule, y, mask);
    } else {
      run_as<L, T, false, false, false>(x, count, rule, y, mask);
    }
  } else if (rule.relu) {
    if (stream) {
      run_as<L, T, true, true, true>(x, count, rule, y, mask);
    } else {
      run_as<L, T, true, true, false>(x, count, rule, y, mask);
    }
  } else if (stream) {
    run_as<L, T, false, true, true>(x, count, rule, y, mask);
  } else {
    run_as<L, T, false, true, false>(x, count, rule, y, mask);
  }
}

/// v * 0 is NaN for NaN and infinity, and stays so in a sum.
template <class L, class T, bool kStream>
inline bool watched_as(const T* x, int64_t count, const FakeRule& rule, T* y) {
  const LaneRule<L> r(rule);
  const typename L::F zero = L::set(0.0f);
  typename L::F sum = zero;
  for_blocks(
      count,
      [&](int64_t i) {
        const typename L::F v = L::load(x + i);
        const typename L::F out = L::mul(code<L>(L::mul(v, r.inverse), r), r.scale);
        sum = L::add(sum, L::mul(v, zero));
        if (kStream) {
          L::stream(y + i, out);
        } else {
          L::store(y + i, out);
        }
      },
      [&](int64_t i, int64_t some) {
        const typename L::F v = L::load(x + i, some);
        sum = L::add(sum, L::mul(v, zero));
        L::store(y + i, L::mul(code<L>(L::mul(v, r.inverse), r), r.scale), some);
      });
  return L::bits(L::ge(sum, zero)) == 0xffff;
}

template <class L, class T>
bool watched(const void* from, int64_t count, const FakeRule& rule, void* to, bool stream) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  return stream ? watched_as<L, T, true>(x, count, rule, y)
                : watched_as<L, T, false>(x, count, rule, y);
}

/// Rows that are computed with one set of sixteen rules in registers before the next set is loaded.
/// One row where 64 or more columns come from memory: hardware prefetchers do not follow strides of
/// more than two cache lines. Measured, ns a value:
///
///   values    columns  several rows  one row
///   6.4 M     64       0.29 to 0.40  0.24       (prefetch instructions do not help)
///   0.2 M     32       0.098         0.137
///   0.2 M     64       0.100         0.120
inline int64_t rows_of_tile(int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 4096, kCached = int64_t{1} << 18;
  const bool from_memory = columns >= 64 && rows * columns > kCached;
  return from_memory || columns > kTile ? 1 : kTile / columns;
}

/// Calls f(row, c, count, rules) for blocks of up to sixteen columns of every row, rows ascending
/// for each column; g(c, count) before and h(c, count) after the rows of a tile.
template <class L, class F, class Before, class After>
inline void for_column_blocks(int64_t rows, int64_t columns, const FakeColumns& rules, F&& f,
                              Before&& before, After&& after) {
  const int64_t tile = rows_of_tile(rows, columns);
  for (int64_t first = 0; first < rows; first += tile) {
    const int64_t last = rows - first < tile ? rows : first + tile;
    for (int64_t c = 0; c < columns; c += 16) {
      const LaneRule<L> r(rules, c);
      const int64_t some = columns - c;
      before(c, some < 16 ? some : 16);
      if (some >= 16) {
        for (int64_t row = first; row < last; ++row) f(row, c, 16, r);
      } else {
        for (int64_t row = first; row < last; ++row) f(row, c, some, r);
      }
      after(c, some < 16 ? some : 16);
    }
  }
}

template <class L, class T>
inline typename L::F load_some(const T* from, int64_t count) {
  return count == 16 ? L::load(from) : L::load(from, count);
}
template <class L, class T>
inline void store_some(T* to, typename L::F v, int64_t count) {
  if (count == 16) {
    L::store(to, v);
  } else {
    L::store(to, v, count);
  }
}

template <class L, class T, bool kRelu, bool kMask, bool kStream>
inline void columns_as(const T* x, int64_t rows, int64_t columns, const FakeColumns& rules, T* y,
                       uint8_t* mask) {
  const int64_t bytes = (columns + 7) / 8;
  for_column_blocks<L>(
      rows, columns, rules,
      [&](int64_t row, int64_t c, int64_t count, const LaneRule<L>& r) {
        const typename L::F v = load_some<L>(x + row * columns + c, count);
        const typename L::F t = L::mul(v, r.inverse);
        if (kMask) {
          const uint32_t used = count == 16 ? 0xffffu : (1u << count) - 1;
          store_bits(mask + row * bytes + c / 8, L::bits(passes<L, kRelu>(v, t, r)) & used, count);
        }
        T* out = y + row * columns + c;
        if (kStream && count == 16) {
          L::stream(out, L::mul(code<L>(t, r), r.scale));
        } else {
          store_some<L>(out, L::mul(code<L>(t, r), r.scale), count);
        }
      },
      [](int64_t, int64_t) {}, [](int64_t, int64_t) {});
}

template <class L, class T, bool kStream>
inline void columns_stored(const T* x, int64_t rows, int64_t columns, const FakeColumns& rules,
                           T* y, uint8_t* mask) {
  if (mask == nullptr) {
    columns_as<L, T, false, false, kStream>(x, rows, columns, rules, y, mask);
  } else if (rules.relu) {
    columns_as<L, T, true, true, kStream>(x, rows, columns, rules, y, mask);
  } else {
    columns_as<L, T, false, true, kStream>(x, rows, columns, rules, y, mask);
  }
}

template <class L, class T>
void columns(const void* from, int64_t rows, int64_t columns, const FakeColumns& rules, void* to,
             uint8_t* mask, bool stream) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  if (stream) {
    columns_stored<L, T, true>(x, rows, columns, rules, y, mask);
  } else {
    columns_stored<L, T, false>(x, rows, columns, rules, y, mask);
  }
}

template <class L, class T>
void masked(const void* from, int64_t count, const uint8_t* mask, void* to, bool stream) {
  const T* dy = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  const auto rest = [&](int64_t i, int64_t some) {
    const typename L::M m = L::truth(load_bits(mask + i / 8, some));
    L::store(dx + i, L::keep(m, L::load(dy + i, some)), some);
  };
  const auto part = [&](int64_t i) {
    return L::keep(L::truth(load_bits(mask + i / 8, 16)), L::load(dy + i));
  };
  if (stream) {
    for_blocks(
        count, [&](int64_t i) { L::stream(dx + i, part(i)); }, rest);
  } else {
    for_blocks(
        count, [&](int64_t i) { L::store(dx + i, part(i)); }, rest);
  }
}

/// What one block of a learned step adds and gives.
template <class L>
struct Learned {
  typename L::F to_scale, to_zero, dx;
};

template <class L, bool kRelu>
inline Learned<L> learned_block(typename L::F dy, typename L::F x, const LaneRule<L>& r) {
  const typename L::F t = scaled<L, kRelu>(x, r);
  const typename L::F n = code<L>(t, r);
  const typename L::M inside = L::both(L::ge(t, r.in_lo), L::le(t, r.in_hi));
  const typename L::M outside = L::either(L::lt(t, r.in_lo), L::gt(t, r.in_hi));
  const typename L::M pass = kRelu ? L::both(inside, L::gt(x, L::set(0.0f))) : inside;
  return {L::mul(dy, L::sub(n, L::keep(inside, t))), L::keep(outside, dy), L::keep(pass, dy)};
}

template <class L, class T, bool kRelu>
inline void learned_as(const T* dy, const T* x, int64_t count, const FakeRule& rule, T* dx,
                       FakeSums* sums, bool stream) {
  const LaneRule<L> r(rule);
  typename L::D to_scale = L::zeros(), to_zero = L::zeros();
  for_blocks(
      count,
      [&](int64_t i) {
        const Learned<L> g = learned_block<L, kRelu>(L::load(dy + i), L::load(x + i), r);
        L::gather(to_scale, g.to_scale);
        L::gather(to_zero, g.to_zero);
        if (stream) {
          L::stream(dx + i, g.dx);
        } else {
          L::store(dx + i, g.dx);
        }
      },
      [&](int64_t i, int64_t some) {
        const Learned<L> g =
            learned_block<L, kRelu>(L::load(dy + i, some), L::load(x + i, some), r);
        L::gather(to_scale, g.to_scale);
        L::gather(to_zero, g.to_zero);
        L::store(dx + i, g.dx, some);
      });
  L::spill(to_scale, sums->scale, 16);
  L::spill(to_zero, sums->zero, 16);
}

template <class L, class T>
void learned(const void* gradient, const void* from, int64_t count, const FakeRule& rule, void* to,
             FakeSums* sums, bool stream) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  if (rule.relu) {
    learned_as<L, T, true>(dy, x, count, rule, dx, sums, stream);
  } else {
    learned_as<L, T, false>(dy, x, count, rule, dx, sums, stream);
  }
}

template <class L, class T, bool kRelu>
inline void learned_columns_as(const T* dy, const T* x, int64_t rows, int64_t columns,
                               const FakeColumns& rules, T* dx, double* to_scale, double* to_zero) {
  typename L::D scale_sums = L::zeros(), zero_sums = L::zeros();
  for_column_blocks<L>(
      rows, columns, rules,
      [&](int64_t row, int64_t c, int64_t count, const LaneRule<L>& r) {
        const int64_t at = row * columns + c;
        const Learned<L> g =
            learned_block<L, kRelu>(load_some<L>(dy + at, count), load_some<L>(x + at, count), r);
        L::gather(scale_sums, g.to_scale);
        L::gather(zero_sums, g.to_zero);
        store_some<L>(dx + at, g.dx, count);
      },
      [&](int64_t c, int64_t count) {
        scale_sums = L::sums(to_scale + c, count);
        if (to_zero != nullptr) zero_sums = L::sums(to_zero + c, count);
      },
      [&](int64_t c, int64_t count) {
        L::spill(scale_sums, to_scale + c, count);
        if (to_zero != nullptr) L::spill(zero_sums, to_zero + c, count);
      });
}

template <class L, class T>
void learned_columns(const void* gradient, const void* from, int64_t rows, int64_t columns,
                     const FakeColumns& rules, void* to, double* to_scale, double* to_zero) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  if (rules.relu) {
    learned_columns_as<L, T, true>(dy, x, rows, columns, rules, dx, to_scale, to_zero);
  } else {
    learned_columns_as<L, T, false>(dy, x, rows, columns, rules, dx, to_scale, to_zero);
  }
}

template <class L, class T>
void clipped(const void* gradient, const void* from, int64_t count, float top, void* to,
             FakeSums* sums) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  const typename L::F highest = L::set(top), zero = L::set(0.0f);
  typename L::D to_top = L::zeros();
  const auto block = [&](typename L::F d, typename L::F v) {
    L::gather(to_top, L::keep(L::ge(v, highest), d));
    return L::keep(L::both(L::gt(v, zero), L::lt(v, highest)), d);
  };
  for_blocks(
      count, [&](int64_t i) { L::store(dx + i, block(L::load(dy + i), L::load(x + i))); },
      [&](int64_t i, int64_t some) {
        L::store(dx + i, block(L::load(dy + i, some), L::load(x + i, some)), some);
      });
  L::spill(to_top, sums->scale, 16);
}

template <class L, class T>
void levels(const void* from, int64_t count, const LevelRule& rule, void* to) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const typename L::F inverse = L::set(rule.inverse), scale = L::set(rule.scale);
  const typename L::Nearest nearest(*rule.table);
  const auto block = [&](typename L::F v) { return L::mul(nearest(L::mul(v, inverse)), scale); };
  for_blocks(
      count, [&](int64_t i) { L::store(y + i, block(L::load(x + i))); },
      [&](int64_t i, int64_t some) { L::store(y + i, block(L::load(x + i, some)), some); });
}

template <class L, class T>
void levels_gradient(const void* gradient, const void* from, int64_t count, const LevelRule& rule,
                     void* to, FakeSums* sums) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  const typename L::F inverse = L::set(rule.inverse);
  const typename L::F low = L::set(rule.table->level[0]);
  const typename L::F high = L::set(rule.table->level[rule.table->count - 1]);
  const typename L::Nearest nearest(*rule.table);
  typename L::D to_scale = L::zeros();
  const auto block = [&](typename L::F d, typename L::F v) {
    const typename L::F t = L::mul(v, inverse);
    const typename L::M inside = L::both(L::ge(t, low), L::le(t, high));
    L::gather(to_scale, L::mul(d, L::sub(nearest(t), L::keep(inside, t))));
    return rule.clip ? L::keep(inside, d) : d;
  };
  for_blocks(
      count,
      [&](int64_t i) {
        const typename L::F d = block(L::load(dy + i), L::load(x + i));
        if (dx != nullptr) L::store(dx + i, d);
      },
      [&](int64_t i, int64_t some) {
        const typename L::F d = block(L::load(dy + i, some), L::load(x + i, some));
        if (dx != nullptr) L::store(dx + i, d, some);
      });
  L::spill(to_scale, sums->scale, 16);
}

template <class L, class T>
void widen(const void* from, int64_t count, float* y) {
  const T* x = static_cast<const T*>(from);
  for_blocks(
      count, [&](int64_t i) { L::store(y + i, L::load(x + i)); },
      [&](int64_t i, int64_t some) { L::store(y + i, L::load(x + i, some), some); });
}

template <class L, class T>
FakeKernels lane_kernels() {
  return {run<L, T>,     watched<L, T>, columns<L, T>,
          masked<L, T>,  learned<L, T>, learned_columns<L, T>,
          clipped<L, T>, levels<L, T>,  levels_gradient<L, T>,
          widen<L, T>};
}

template <class L>
void fill_with_lanes(FakeQuantizeTable& t) {
  t.of[0] = lane_kernels<L, float>();
  t.of[1] = lane_kernels<L, Bf16>();
  t.of[2] = lane_kernels<L, F16>();
}

}  // namespace
}  // namespace octavo
