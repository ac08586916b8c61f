"""What the tests take for granted of their own process, however they were started."""

import signal

# A shell starts what runs in the background with SIGINT ignored, and so would be whatever a test starts,
# also where the test is about what SIGINT does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
