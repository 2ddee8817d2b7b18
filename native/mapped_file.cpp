// Source: proc_pid_smaps(5), madvise(2).
#include "mapped_file.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#endif

namespace edgellm {

void release_mapped_file(const std::string& path) {
#if defined(__linux__)
  std::ifstream maps("/proc/self/smaps");
  uintptr_t first = 0, last = 0;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word.find('-') != std::string::npos) {  // first-last permissions offset device inode path
      std::string rest;
      for (int i = 0; i < 4; ++i) words >> rest;
      std::getline(words >> std::ws, rest);
      first = last = 0;
      if (rest == path) {
        first = std::stoull(word, nullptr, 16);
        last = std::stoull(word.substr(word.find('-') + 1), nullptr, 16);
      }
    } else if (word == "Anonymous:") {  // pages that were written to, which would be lost
      uint64_t written = 1;
      words >> written;
      if (written == 0 && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
  }
#else
  (void)path;
#endif
}

}  // namespace edgellm
