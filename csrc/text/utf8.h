// One character of UTF-8 at a time, checked by the table of well-formed sequences in chapter 3 of
// the Unicode Standard.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

constexpr uint32_t kCodePoints = 0x110000;

struct Character {
  uint32_t code;
  // Bytes it takes; of what is no character 0, and 1 more than there are where the text is cut off.
  size_t size;
};

// The character beyond ASCII that begins at `p`, before `end`.
inline Character decode_character(const uint8_t* p, const uint8_t* end) {
  const uint8_t lead = *p;
  const size_t size = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  const size_t available = static_cast<size_t>(end - p);
  if (size > available) return {0, available + 1};
  // What is left of the lead byte; then six bits of each byte that follows.
  uint32_t code = lead & (0xffu >> (size + 1));
  for (size_t i = 1; i < size; ++i) {
    if ((p[i] & 0xc0) != 0x80) return {0, 0};
    code = code << 6 | (p[i] & 0x3f);
  }
  const bool overlong = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (overlong || surrogate || code >= kCodePoints) return {0, 0};
  return {code, size};
}

// Whether Python's str.split takes it for a blank.
inline bool is_blank(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 0x09 && code <= 0x0d) || (code >> 2) == 7;
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
         code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

}  // namespace rnnfast
