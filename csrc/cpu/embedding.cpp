#include "pybatch/embedding.h"

#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "pybatch/matmul.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Each reader below gives the n <= kLanes elements of a table row from column i on; the other lanes are zero.

template <class T>
struct Rows {
  const T* row;
  Rows(const EmbeddingParams& p, int64_t id) : row(static_cast<const T*>(p.table) + id * p.width) {}
  F32x16 at(int64_t i, int64_t n) const { return load_first(row + i, n); }
};

template <class T>
struct PackedDense {
  const T* column;
  PackedDense(const EmbeddingParams& p, int64_t id)
      : column(static_cast<const T*>(p.table) + id / kPanel * p.width * kPanel + id % kPanel) {}
  F32x16 at(int64_t i, int64_t n) const {
    T values[kLanes] = {};
    for (int64_t j = 0; j < n; ++j) values[j] = column[(i + j) * kPanel];
    return load(values);
  }
};

struct PackedInt8 {
  const int8_t* column;
  F32x16 scale;
  PackedInt8(const EmbeddingParams& p, int64_t id) : scale(broadcast(p.scale[id])) {
    int64_t groups = (p.width + 3) / 4;
    column = static_cast<const int8_t*>(p.table) + id / kPanel * (groups + 1) * kPanel * 4 + id % kPanel * 4;
  }
  F32x16 at(int64_t i, int64_t n) const {
    int8_t values[kLanes] = {};
    for (int64_t j = 0; j < n; j += 4) std::memcpy(values + j, column + (i + j) / 4 * kPanel * 4, 4);
    return load(values) * scale;
  }
};

template <class Row>
void gather(const EmbeddingParams& p) {
  with_float_type(p.out.dtype, [&]<class T>(T*) {
    parallel_for(p.count, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const Row row(p, p.ids[token]);
        T* out = static_cast<T*>(p.out.data) + token * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          int64_t n = p.width - i < kLanes ? p.width - i : kLanes;
          store_first(out + i, row.at(i, n), n);
        }
      }
    });
  });
}

}  // namespace

void embedding(const EmbeddingParams& p) {
  switch (p.layout) {
    case TableLayout::rows: return with_float_type(p.table_dtype, [&]<class T>(T*) { gather<Rows<T>>(p); });
    case TableLayout::packed_dense:
      return with_float_type(p.table_dtype, [&]<class T>(T*) { gather<PackedDense<T>>(p); });
    case TableLayout::packed_int8: return gather<PackedInt8>(p);
  }
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
