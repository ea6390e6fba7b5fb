// Words numbered in the order in which they came: a hash table with open addressing. What a lookup
// needs stands here, to be compiled into the loop over a text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

namespace rnnfast {

class WordTable {
 public:
  WordTable();

  // The number of a word, or -1 where it is not there. `readable`: how many bytes may be read from
  // `word` on, which are `size` or more; with eight it is faster.
  int32_t find(const uint8_t* word, size_t size, size_t readable) const {
    return slots_[slot_of(Key(word, size, readable))].number;
  }

  // The same; a new word gets the next number.
  int32_t insert(const uint8_t* word, size_t size, size_t readable) {
    const Key key(word, size, readable);
    const int32_t number = slots_[slot_of(key)].number;
    return number < 0 ? add(key) : number;
  }

  int32_t size() const { return static_cast<int32_t>(ends_.size()) - 1; }

  std::string_view word(int32_t number) const {
    const size_t begin = ends_[static_cast<size_t>(number)];
    return {bytes_.data() + begin, ends_[static_cast<size_t>(number) + 1] - begin};
  }

 private:
  // Words of up to eight bytes, which most are, are told apart by their slot alone.
  struct Slot {
    uint64_t head;   // the first eight bytes, zeros where there are fewer
    uint32_t size;   // in bytes; the largest uint32_t stands for all that are longer
    int32_t number;  // -1 in an empty slot
  };

  // A word as it is looked up.
  struct Key {
    Key(const uint8_t* word, size_t size, size_t readable)
        : word(word), size(size), head(load(word, size, readable)), hash(mixed(head ^ size)) {
      for (size_t i = 8; i < size; i += 8)
        hash = mixed(hash ^ load(word + i, size - i, readable - i));
    }

    uint32_t size_in_slot() const {
      return static_cast<uint32_t>(std::min<size_t>(size, std::numeric_limits<uint32_t>::max()));
    }

    const uint8_t* word;
    size_t size;
    uint64_t head, hash;
  };

  // The first eight bytes as a number, zeros where `size` is less. Where as many may be read there
  // is no branch on the size, which nobody could foresee.
  static uint64_t load(const uint8_t* bytes, size_t size, size_t readable) {
    uint64_t x = 0;
    if (readable < 8) {
      std::memcpy(&x, bytes, size);
      return x;
    }
    std::memcpy(&x, bytes, 8);
    return size < 8 ? x & ((uint64_t{1} << 8 * size) - 1) : x;
  }

  // Both halves of a product: every bit of a number reaches the low ones, which choose the slot.
  static uint64_t mixed(uint64_t x) {
    constexpr uint64_t factor = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
    const unsigned __int128 product = static_cast<unsigned __int128>(x) * factor;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }

  // The slot that holds the word, or the empty one where it belongs.
  size_t slot_of(const Key& key) const {
    const size_t mask = slots_.size() - 1;
    const uint32_t size = key.size_in_slot();
    for (size_t i = key.hash & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.number < 0) return i;
      if (slot.head != key.head || slot.size != size) continue;
      if (size <= 8) return i;
      const std::string_view held = word(slot.number);
      if (held.size() == key.size && std::memcmp(held.data(), key.word, key.size) == 0) return i;
    }
  }

  int32_t add(const Key& key);
  void grow();

  std::vector<Slot> slots_;   // a power of two of them, at most half of them full
  std::vector<char> bytes_;   // all words, one after the other
  std::vector<size_t> ends_;  // 0, then where each word ends in bytes_
};

}  // namespace rnnfast
