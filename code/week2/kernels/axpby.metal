// out = a x + b y, computed in float. One thread for each element.
// x, y, out (n,) of T; a, b float; n is an int.
// BODY
// YOUR CODE (w2.2.1): one element for each thread
#error "NotDone: w2.2.1"
