# Programs that need a card; without one the test is skipped. Run both with tests/gpu_pass.sh.
add_executable(kernels_cuda_test cuda_test.cc cuda_composites.cc)
target_link_libraries(kernels_cuda_test PRIVATE hone_op_cases hone_kernels_cuda)
add_test(NAME kernels_cuda_test COMMAND kernels_cuda_test)
set_tests_properties(kernels_cuda_test PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)

add_executable(kernels_cuda_bench cuda_bench.cc)
target_link_libraries(kernels_cuda_bench PRIVATE hone_kernels_cuda)

# Attention through cuDNN, where the library is installed; otherwise skipped.
add_executable(cudnn_attention_test cudnn_attention_test.cc)
target_link_libraries(cudnn_attention_test PRIVATE hone_kernels_cuda)
add_test(NAME cudnn_attention_test COMMAND cudnn_attention_test)
set_tests_properties(cudnn_attention_test PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)

add_executable(kernels_cuda_small_bench cuda_small_bench.cc)
target_link_libraries(kernels_cuda_small_bench PRIVATE hone_kernels_cuda)

add_executable(kernels_cuda_generate_bench cuda_generate_bench.cc)
target_link_libraries(kernels_cuda_generate_bench PRIVATE hone_kernels_cuda)
