// Files that are mapped into this process.
#pragma once

#include <string>

namespace edgellm {

// The pages of a file that somebody mapped and nobody wrote to leave this process; they stay in the system's cache, and
// whoever looks again gets them from there. path: absolute, without links. Linux alone; elsewhere nothing happens.
void release_mapped_file(const std::string& path);

}  // namespace edgellm
