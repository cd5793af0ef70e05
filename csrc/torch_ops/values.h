// Checks of values that kernels trust: ids, slots, offsets, block tables. A graph repeats them before each replay.
#pragma once

#include <algorithm>
#include <vector>

#include "pybatch/linear_attention.h"
#include "torch_ops/checks.h"

namespace pybatch {

struct Ids {
  const char* name;
  const int64_t* ids;
  int64_t count, limit;

  bool operator==(const Ids&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(ids[i] >= 0 && ids[i] < limit, name, ": expected ids in [0, ", limit, "), got ", ids[i], " at ", i);
    }
  }
};

struct MaskRows {
  const int64_t* rows;
  int64_t count, limit;

  bool operator==(const MaskRows&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(rows[i] < limit, "mask_rows: expected below ", limit, " (the masks), got ", rows[i], " at ", i);
    }
  }
};

struct Slots {
  const int64_t* slots;
  int64_t count, limit;

  bool operator==(const Slots&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(slots[i] < limit, "slots: expected below ", limit, ", got ", slots[i], " at ", i);
    }
  }
};

// Pairs are copied in parallel, so no block may be written twice, or be both read and written within a pool.
struct BlockPairs {
  const int64_t* pairs;  // [count][2]
  int64_t count, src_blocks, dst_blocks;
  bool one_pool;

  bool operator==(const BlockPairs&) const = default;
  void operator()() const {
    std::vector<int64_t> written(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t src = pairs[2 * i], dst = pairs[2 * i + 1];
      EXPECT(src >= 0 && src < src_blocks, "pairs: expected source blocks in [0, ", src_blocks, "), got ", src, " at ",
             i);
      EXPECT(dst >= 0 && dst < dst_blocks, "pairs: expected destination blocks in [0, ", dst_blocks, "), got ", dst,
             " at ", i);
      written[static_cast<size_t>(i)] = dst;
    }
    std::sort(written.begin(), written.end());
    const auto twice = std::adjacent_find(written.begin(), written.end());
    EXPECT(twice == written.end(), "pairs: expected each destination block once, got ", *twice, " twice");
    for (int64_t i = 0; one_pool && i < count; ++i) {
      EXPECT(!std::binary_search(written.begin(), written.end(), pairs[2 * i]),
             "pairs: expected no block as both source and destination, got ", pairs[2 * i]);
    }
  }
};

// Offsets of a ragged list: ascending, from 0 to the list's length.
struct Offsets {
  const char* name;
  const int64_t* starts;  // [rows + 1]
  int64_t rows, length;

  bool operator==(const Offsets&) const = default;
  void operator()() const {
    bool ascending = starts[0] == 0 && starts[rows] == length;
    for (int64_t i = 0; i < rows; ++i) ascending = ascending && starts[i] <= starts[i + 1];
    EXPECT(ascending, name, ": expected ascending offsets from 0 to ", length);
  }
};

// Where each expert's rows begin, and indices of rows and tokens; members as in Experts.
struct ExpertRows {
  const int32_t* starts;
  int64_t experts, rows;

  bool operator==(const ExpertRows&) const = default;
  void operator()() const {
    bool ascending = starts[0] == 0 && starts[experts] == rows;
    for (int64_t i = 0; i < experts; ++i) ascending = ascending && starts[i] <= starts[i + 1];
    EXPECT(ascending, "starts: expected ascending offsets from 0 to ", rows);
  }
};

struct Indices {
  const char* name;
  const int32_t* indices;
  int64_t count, limit;

  bool operator==(const Indices&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(indices[i] >= 0 && indices[i] < limit, name, ": expected in [0, ", limit, "), got ", indices[i], " at ",
             i);
    }
  }
};

struct OutputStarts {
  const int64_t *output_start, *history_start;
  int64_t rows;

  bool operator==(const OutputStarts&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < rows; ++i) {
      EXPECT(output_start[i] >= history_start[i] && output_start[i] <= history_start[i + 1],
             "output_start: expected within the history of row ", i);
    }
  }
};

// A ragged batch of queries over cached sequences; members as in PagedAttentionParams.
struct AttentionBatch {
  const int32_t *block_tables, *query_start, *seq_lens;
  int64_t block_table_stride, sequences, tokens, block_size, num_blocks;

  bool operator==(const AttentionBatch&) const = default;
  void operator()() const {
    EXPECT(query_start[0] == 0 && query_start[sequences] == tokens,
           "query_start: expected to begin with 0 and end with ", tokens, " (the rows of q)");
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t queries = int64_t{query_start[s + 1]} - query_start[s];
      EXPECT(queries >= 0, "query_start: expected ascending values");
      EXPECT(seq_lens[s] >= queries, "seq_lens: expected at least the ", queries, " queries of sequence ", s, ", got ",
             seq_lens[s]);
      const int64_t blocks = (seq_lens[s] + block_size - 1) / block_size;
      EXPECT(blocks <= block_table_stride, "block_tables: expected at least ", blocks, " columns for sequence ", s,
             ", got ", block_table_stride);
      const int32_t* table = block_tables + s * block_table_stride;
      uint32_t largest = 0;  // negative numbers are larger than any others
      for (int64_t b = 0; b < blocks; ++b) largest = std::max(largest, static_cast<uint32_t>(table[b]));
      EXPECT(blocks == 0 || largest < std::min(num_blocks, int64_t{1} << 31), "block_tables: expected blocks in [0, ",
             num_blocks, "), got ", static_cast<int32_t>(largest), " in sequence ", s);
    }
  }
};

// A ragged batch of tokens and the slots of their sequences' states.
struct States {
  StateBatch batch;
  int64_t slots;

  bool operator==(const States& other) const {
    return batch.query_start == other.batch.query_start && batch.source == other.batch.source &&
           batch.destination == other.batch.destination && batch.sequences == other.batch.sequences &&
           batch.tokens == other.batch.tokens && slots == other.slots;
  }
  void operator()() const {
    const int32_t* starts = batch.query_start;
    EXPECT(starts[0] == 0 && starts[batch.sequences] == batch.tokens,
           "query_start: expected to begin with 0 and end with ", batch.tokens, " (the rows)");
    std::vector<int32_t> written;
    for (int64_t s = 0; s < batch.sequences; ++s) {
      EXPECT(starts[s] < starts[s + 1], "query_start: expected at least one token of sequence ", s);
      EXPECT(batch.destination[s] < slots, "destination: expected below ", slots, ", got ", batch.destination[s],
             " at ", s);
      if (batch.destination[s] >= 0) written.push_back(batch.destination[s]);
    }
    std::sort(written.begin(), written.end());
    const auto twice = std::adjacent_find(written.begin(), written.end());
    EXPECT(twice == written.end(), "destination: expected each slot once, got ", *twice, " twice");
    for (int64_t s = 0; s < batch.sequences; ++s) {
      EXPECT(batch.source[s] < slots, "source: expected below ", slots, ", got ", batch.source[s], " at ", s);
      EXPECT(!std::binary_search(written.begin(), written.end(), batch.source[s]),
             "source: expected slots that are not written, got ", batch.source[s], " at ", s);
    }
  }
};

// Blocks of a cache; distinct: each may occur once only.
template <class T>
struct Blocks {
  const char* name;
  const T* blocks;
  int64_t count, num_blocks;
  bool distinct;

  bool operator==(const Blocks&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(blocks[i] >= 0 && blocks[i] < num_blocks, name, ": expected blocks in [0, ", num_blocks, "), got ",
             blocks[i], " at ", i);
    }
    if (!distinct) return;
    std::vector<T> sorted(blocks, blocks + count);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    EXPECT(twice == sorted.end(), name, ": expected each block once, got ", *twice, " twice");
  }
};

// Tokens that are copied in parallel from one block table to another.
struct Gathering {
  const int32_t *source, *destination, *indices;
  int64_t source_count, destination_count, count, kept, num_blocks, block_size;

  bool operator==(const Gathering&) const = default;
  void operator()() const {
    Blocks<int32_t>{"source", source, source_count, num_blocks, false}();
    Blocks<int32_t>{"destination", destination, destination_count, num_blocks, true}();
    bool in_place = false;
    for (int64_t i = 0; i < destination_count; ++i) {
      const int64_t others = std::count(source, source + source_count, destination[i]);
      const bool stays = i < source_count && source[i] == destination[i];
      EXPECT(others == (stays ? 1 : 0),
             "destination: expected blocks that are in source at the same place or not, got ", destination[i], " at ",
             i);
      in_place = in_place || stays;
    }
    const int64_t tokens = source_count * block_size;
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(indices[i] >= 0 && indices[i] < tokens, "indices: expected tokens in [0, ", tokens, "), got ", indices[i],
             " at ", i);
      EXPECT(!in_place || indices[i] >= i % kept,
             "indices: expected none below its place, since blocks of source are "
             "in destination, got ",
             indices[i], " at ", i);
    }
  }
};

// Rows of sums that attention_mass reads and writes; members as in AttentionMassParams.
struct MassRows {
  const int32_t *query_start, *seq_lens, *first, *sources, *rows;
  int64_t sequences, count, capacity;

  bool operator==(const MassRows&) const = default;
  void operator()() const {
    std::vector<bool> written(static_cast<size_t>(count));
    for (int64_t s = 0; s < sequences; ++s) {
      EXPECT(first[s] >= query_start[s] && first[s] <= query_start[s + 1], "first: expected a row of sequence ", s,
             " or the one behind, ", query_start[s], " to ", query_start[s + 1], ", got ", first[s]);
      if (first[s] == query_start[s + 1]) continue;
      EXPECT(seq_lens[s] <= capacity, "mass: expected room for the ", seq_lens[s], " tokens of sequence ", s, ", got ",
             capacity);
      EXPECT(rows[s] >= 0 && rows[s] < count, "rows: expected in [0, ", count, "), got ", rows[s], " at ", s);
      EXPECT(!written[static_cast<size_t>(rows[s])], "rows: expected each row once, got ", rows[s], " twice");
      written[static_cast<size_t>(rows[s])] = true;
    }
    for (int64_t s = 0; s < sequences; ++s) {
      if (first[s] == query_start[s + 1] || sources[s] < 0) continue;
      EXPECT(sources[s] < count, "sources: expected below ", count, ", got ", sources[s], " at ", s);
      EXPECT(!written[static_cast<size_t>(sources[s])], "sources: expected rows that are not written, got ", sources[s],
             " at ", s);
    }
  }
};

struct SamplingSettings {
  const float *temperature, *top_p, *min_p;
  int64_t rows;

  bool operator==(const SamplingSettings&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < rows; ++i) {
      EXPECT(temperature[i] >= 0, "temperature: expected 0 or more, got ", temperature[i], " at ", i);
      EXPECT(top_p[i] > 0 && top_p[i] <= 1, "top_p: expected in (0, 1], got ", top_p[i], " at ", i);
      EXPECT(min_p[i] >= 0 && min_p[i] <= 1, "min_p: expected in [0, 1], got ", min_p[i], " at ", i);
    }
  }
};

}  // namespace pybatch
