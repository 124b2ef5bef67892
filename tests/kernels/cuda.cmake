# Programs that need a card; without one the test is skipped. Run both with tests/gpu_pass.sh.
add_executable(kernels_cuda_test cuda_test.cc cuda_composites.cc)
target_link_libraries(kernels_cuda_test PRIVATE hone_op_cases hone_kernels_cuda)
add_test(NAME kernels_cuda_test COMMAND kernels_cuda_test)
set_tests_properties(kernels_cuda_test PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)

add_executable(kernels_cuda_bench cuda_bench.cc)
target_link_libraries(kernels_cuda_bench PRIVATE hone_kernels_cuda)

add_executable(kernels_cuda_small_bench cuda_small_bench.cc)
target_link_libraries(kernels_cuda_small_bench PRIVATE hone_kernels_cuda)

add_executable(kernels_cuda_generate_bench cuda_generate_bench.cc)
target_link_libraries(kernels_cuda_generate_bench PRIVATE hone_kernels_cuda)

# The user's card: no kernel spills or asks for more shared memory than a block may have there. Needs no card: ptxas says so
# while compiling.
if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "86" AND CMAKE_GENERATOR STREQUAL Ninja)
  target_compile_options(hone_kernels_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
  set_property(TARGET hone_kernels_cuda PROPERTY RULE_LAUNCH_COMPILE ${CMAKE_CURRENT_LIST_DIR}/keep_ptxas.sh)
  get_target_property(sources hone_kernels_cuda SOURCES)
  list(FILTER sources INCLUDE REGEX "\\.cu$")
  # Excused: attention without tensor cores, which only shapes and precisions that nothing else takes ever see, and tiles
  # for cards with more shared memory, which never run there.
  set(may_spill "attention_plain_cu|(Forward|QueryGradient|KeyGradient)TilesILi[0-9]+ELi2E")
  add_test(NAME kernels_cuda_sm86_resources
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/check_ptxas.sh
            ${CMAKE_BINARY_DIR}/kernels/cuda/CMakeFiles/hone_kernels_cuda.dir 86 ${may_spill} ${sources})
endif()

add_executable(kernels_cuda_linear_bench cuda_linear_bench.cc)
target_link_libraries(kernels_cuda_linear_bench PRIVATE hone_kernels_cuda)
