// The native side of rnnfast.text.encode_file and count_tokens: blocks of a text to ids, or to how
// often each token occurs. Blocks are as in scan.h; `last` says that none comes after this one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "text/scan.h"
#include "text/word_table.h"

namespace rnnfast {

// Encoders: `unknown` is the id of a token that is not in the vocabulary, or -1: it is then
// refused. `encode` writes `*count` ids, one for each byte of the block at most; Id is uint8_t,
// uint16_t or int32_t and holds all ids.

class CharacterEncoder {
 public:
  // `ids`: code points, each with its id.
  CharacterEncoder(const std::vector<std::pair<uint32_t, int32_t>>& ids, int32_t unknown);

  template <class Id>
  Scanned encode(const uint8_t* text, size_t size, bool last, Id* ids, size_t* count) const;

 private:
  std::vector<int32_t> ids_;  // of every code point
};

class WordEncoder {
 public:
  // The place of a token in `tokens` is its id.
  WordEncoder(const std::vector<std::string>& tokens, int32_t unknown);

  template <class Id>
  Scanned encode(const uint8_t* text, size_t size, bool last, Id* ids, size_t* count) const;

 private:
  WordTable words_;
  int32_t unknown_;
  int32_t end_of_line_;
};

// Counters: `count` adds a block, `counts` gives each token that occurred with its occurrences.

class CharacterCounter {
 public:
  using Counts = std::vector<std::pair<uint32_t, int64_t>>;

  CharacterCounter();
  Scanned count(const uint8_t* text, size_t size, bool last);
  Counts counts() const;

 private:
  std::vector<int64_t> counts_;  // of every code point
};

class WordCounter {
 public:
  using Counts = std::vector<std::pair<std::string, int64_t>>;

  Scanned count(const uint8_t* text, size_t size, bool last);
  Counts counts() const;

 private:
  WordTable words_;
  std::vector<int64_t> counts_;  // by the number of a word
};

}  // namespace rnnfast
