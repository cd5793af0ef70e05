// A piece of work is one token's query heads, some or all: they see the same tokens, whose latents they read together.
#include "pybatch/latent_attention.h"

#include "cpu/attention_softmax.h"
#include "cpu/attention_tile.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kHeads = 4 * kRows;                       // of a piece, where there are more than enough pieces
constexpr int64_t kScoreStride = kAttentionSplit + kLanes;  // not a power of two
constexpr int kKeys = kColumns == 1 ? 2 : kColumns;         // multiplied at once
constexpr int kDotRows = kColumns == 1 ? kRows / 2 : kRows;

// out[r][c] = q[r] . key c, of keys that are adjacent: one chain of sums a lane, then the lanes'.
template <int rows, class T>
__attribute__((noinline)) void dots(const float* q, const T* keys, int64_t width, float* out) {
  F32x16 sum[rows][kKeys] = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    F32x16 key[kKeys];
#pragma GCC unroll 8
    for (int c = 0; c < kKeys; ++c) key[c] = load(keys + c * width + i);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32x16 x = load(q + r * width + i);
#pragma GCC unroll 8
      for (int c = 0; c < kKeys; ++c) sum[r][c] = fma(x, key[c], sum[r][c]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < kKeys; ++c) out[r * kScoreStride + c] = reduce_add(sum[r][c]);
  }
}

// A softmax over a part of the tokens, not yet divided by its sum; 0: it has seen none.
struct Partial {
  float max[kRows], sum[kRows];
  float* acc;  // [rows, width]
};

void merge(const Partial& part, Partial& into, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const bool first = into.sum[r] == 0;
    const float top = first || part.max[r] > into.max[r] ? part.max[r] : into.max[r];
    const float keep = first ? 0 : exp2(into.max[r] - top), add = exp2(part.max[r] - top);
    into.max[r] = top;
    into.sum[r] = first ? part.sum[r] : into.sum[r] * keep + part.sum[r] * add;
    for (int64_t i = r * width; i < (r + 1) * width; i += kLanes) {
      const F32x16 more = load(part.acc + i);
      store(into.acc + i, first ? more : fma(more, broadcast(add), load(into.acc + i) * broadcast(keep)));
    }
  }
}

class LatentAttention {
 public:
  explicit LatentAttention(const LatentParams& p)
      : p(p), width(p.cache.width), columns((p.latent + kLanes - 1) / kLanes * kLanes) {
    auto* room = static_cast<float*>(thread_scratch(0, kRows * (3 * width + kScoreStride) * 4));
    q = room;
    part.acc = q + kRows * width;
    state.acc = part.acc + kRows * width;
    scores = state.acc + kRows * width;
  }

  // Heads [head, end) of a token of a sequence, at `position` of it.
  void run(int64_t token, int64_t sequence, int64_t position, int64_t head, int64_t end) {
    for (int64_t rows; head < end; head += rows) {
      rows = rows_at_once(end - head);
      load_queries(token, head, rows);
      for (int64_t r = 0; r < rows; ++r) state.sum[r] = 0;
      with_float_type(p.cache.dtype, [&]<class T>(T*) {
        for (int64_t first = 0; first <= position; first += kAttentionSplit) {
          const int64_t left = position + 1 - first;
          with_count<kRows>(rows, [&]<int count>(Count<count>) {
            attend<count, T>(sequence, first, left < kAttentionSplit ? left : kAttentionSplit);
          });
          merge(part, state, rows, width);
        }
      });
      finish(token, head, rows);
    }
  }

 private:
  void load_queries(int64_t token, int64_t head, int64_t rows) const {
    const F32x16 scale = broadcast(p.scale * kLog2E);
    with_float_type(p.q.dtype, [&]<class T>(T*) {
      const T* from = static_cast<const T*>(p.q.data) + token * p.q.row_stride + head * width;
      for (int64_t i = 0; i < rows * width; i += kLanes) store(q + i, load(from + i) * scale);
    });
  }

  // The split from token `first` on, of which the rows see n tokens.
  template <int rows, class T>
  void attend(int64_t sequence, int64_t first, int64_t n) {
    const T* granules[kAttentionSplit / kGranule];
    const int32_t* table = p.block_tables + sequence * p.block_table_stride;
    for (int64_t i = 0; i < n; i += kGranule) {
      const int64_t at = first + i;
      granules[i / kGranule] = static_cast<const T*>(p.cache.data) +
                               table[at / p.cache.block_size] * p.cache.block_stride + at % p.cache.block_size * width;
      for (int64_t key = 0; key < kGranule; key += kKeys) {
        const T* keys = granules[i / kGranule] + key * width;
        for (int row = 0; row < rows; row += kDotRows) {
          constexpr int rest = rows % kDotRows;
          float* to = scores + row * kScoreStride + i + key;
          if (rest > 0 && row + kDotRows > rows) {
            dots<rest == 0 ? 1 : rest>(q + row * width, keys, width, to);
          } else {
            dots < rows<kDotRows ? rows : kDotRows>(q + row * width, keys, width, to);
          }
        }
      }
    }
    const Range all = {0, (n + kLanes - 1) / kLanes * kLanes}, seen = {0, n};
    Range ranges[rows];
    for (int r = 0; r < rows; ++r) {
      ranges[r] = seen;
      mask(scores + r * kScoreStride, all, seen);
    }
    softmax_rows<rows>(scores, kScoreStride, all, ranges, part.max, part.sum);
    for (int64_t i = 0; i < rows * width; i += kLanes) store(part.acc + i, zeros());
    const Granules<T> values = {granules, granules, 0};
    int64_t column = 0;
    for (; column + kColumns * kLanes <= columns; column += kColumns * kLanes) {
      weigh<rows, kColumns, false>(scores, kScoreStride, values, width, column, 0, n, part.acc, width);
    }
    for (; column < columns; column += kLanes) {
      weigh<rows, 1, false>(scores, kScoreStride, values, width, column, 0, n, part.acc, width);
    }
  }

  void finish(int64_t token, int64_t head, int64_t rows) const {
    with_float_type(p.out.dtype, [&]<class T>(T*) {
      T* to = static_cast<T*>(p.out.data) + token * p.out.row_stride + head * p.latent;
      for (int64_t r = 0; r < rows; ++r, to += p.latent) {
        const F32x16 factor = broadcast(1.0f / state.sum[r]);
        for (int64_t i = 0; i < p.latent; i += kLanes) {
          store_first(to + i, load(state.acc + r * width + i) * factor, p.latent - i);
        }
      }
    });
  }

  const LatentParams& p;
  const int64_t width, columns;  // columns: of values
  float *q, *scores;
  Partial part, state;
};

}  // namespace

void latent_attention(const LatentParams& p) {
  const bool plenty = p.tokens * ((p.heads + kHeads - 1) / kHeads) >= 4 * num_threads();
  const int64_t heads = plenty ? kHeads : kRows, pieces = (p.heads + heads - 1) / heads;
  parallel_for(p.tokens * pieces, 1, [&](int64_t begin, int64_t end) {
    LatentAttention attention(p);
    int64_t sequence = 0;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t token = piece / pieces, head = piece % pieces * heads;
      while (p.query_start[sequence + 1] <= token) ++sequence;
      const int64_t position = p.seq_lens[sequence] - (p.query_start[sequence + 1] - token);
      attention.run(token, sequence, position, head, head + heads < p.heads ? head + heads : p.heads);
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
