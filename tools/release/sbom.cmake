# What the extension contains besides this repository's code, in the wheel as .dist-info/sboms/ (PEP 770, CycloneDX).
# LICENSE.third-party has the licences.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import importlib.metadata; print(importlib.metadata.version('jaxlib'))"
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE jaxlib_VERSION COMMAND_ERROR_IS_FATAL ANY)
configure_file(${CMAKE_CURRENT_LIST_DIR}/sbom.cdx.json.in sbom.cdx.json @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sbom.cdx.json DESTINATION ${SKBUILD_METADATA_DIR}/sboms
        RENAME jax_maddness.cdx.json)
