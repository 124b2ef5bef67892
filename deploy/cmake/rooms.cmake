# One library per room: hone_library(NAME SOURCES ... DEPS ...), hone_test, hone_fuzz, hone_program.
add_library(hone_options INTERFACE)
target_include_directories(hone_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(hone_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-missing-field-initializers>
  # GCC 12 reports both wrongly inside std::string (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict -Wno-maybe-uninitialized>)
if(HONE_SANITIZE OR HONE_FUZZ)
  target_compile_options(hone_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1)
  target_link_options(hone_options INTERFACE -fsanitize=address,undefined)
  if(HONE_FUZZ)
    target_compile_options(hone_options INTERFACE -fsanitize=fuzzer-no-link)
  endif()
endif()

function(hone_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC hone_options ${ARG_DEPS})
endfunction()

function(hone_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE hone_options ${ARG_DEPS})
endfunction()

# A GoogleTest program; every TEST in it is one CTest test. HONE_TEST_DATA and HONE_GOLDEN tell where material lies.
function(hone_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE hone_options ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE HONE_GOLDEN="${CMAKE_SOURCE_DIR}/tests/golden" HONE_SOURCE="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()

# A fuzz target (LLVMFuzzerTestOneInput). With HONE_FUZZ a libFuzzer program; otherwise a test that runs its corpus
# in tests/fuzz/corpus/<name>.
function(hone_fuzz name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(HONE_FUZZ)
    add_executable(${name} ${ARG_SOURCES})
    target_link_libraries(${name} PRIVATE hone_options ${ARG_DEPS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${name} ${ARG_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus_main.cc)
    target_link_libraries(${name} PRIVATE hone_options ${ARG_DEPS})
    add_test(NAME ${name} COMMAND ${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  endif()
endfunction()
