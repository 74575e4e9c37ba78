/* AddressSanitizer guesses where the C library keeps thread-local memory of loaded libraries by what
   stands before it, which may be anything: its search for leaks then reads where nothing is. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "intercept_tls_get_addr=0";
}
