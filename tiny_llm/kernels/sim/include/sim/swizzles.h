// Made by tests/kernels/swizzles.py: the members v.xy, v.zyx, … of each vector type.
#pragma once
#define SIM_SWIZZLES2(T) \
 Swizzle<T,2,0,0> xx; Swizzle<T,2,0,1> xy; Swizzle<T,2,1,0> yx; Swizzle<T,2,1,1> yy; Swizzle<T,3,0,0,0> xxx; \
 Swizzle<T,3,1,1,1> yyy; Swizzle<T,4,0,0,0,0> xxxx; Swizzle<T,4,1,1,1,1> yyyy; Swizzle<T,2,0,1> rg;
#define SIM_SWIZZLES3(T) \
 Swizzle<T,2,0,0> xx; Swizzle<T,2,0,1> xy; Swizzle<T,2,0,2> xz; Swizzle<T,2,1,0> yx; Swizzle<T,2,1,1> yy; \
 Swizzle<T,2,1,2> yz; Swizzle<T,2,2,0> zx; Swizzle<T,2,2,1> zy; Swizzle<T,2,2,2> zz; Swizzle<T,3,0,1,2> xyz; \
 Swizzle<T,3,0,2,1> xzy; Swizzle<T,3,1,0,2> yxz; Swizzle<T,3,1,2,0> yzx; Swizzle<T,3,2,0,1> zxy; \
 Swizzle<T,3,2,1,0> zyx; Swizzle<T,3,0,0,0> xxx; Swizzle<T,3,1,1,1> yyy; Swizzle<T,3,2,2,2> zzz; \
 Swizzle<T,4,0,0,0,0> xxxx; Swizzle<T,4,1,1,1,1> yyyy; Swizzle<T,4,2,2,2,2> zzzz; Swizzle<T,2,0,1> rg; \
 Swizzle<T,2,1,2> gb; Swizzle<T,3,0,1,2> rgb;
#define SIM_SWIZZLES4(T) \
 Swizzle<T,2,0,0> xx; Swizzle<T,2,0,1> xy; Swizzle<T,2,0,2> xz; Swizzle<T,2,0,3> xw; Swizzle<T,2,1,0> yx; \
 Swizzle<T,2,1,1> yy; Swizzle<T,2,1,2> yz; Swizzle<T,2,1,3> yw; Swizzle<T,2,2,0> zx; Swizzle<T,2,2,1> zy; \
 Swizzle<T,2,2,2> zz; Swizzle<T,2,2,3> zw; Swizzle<T,2,3,0> wx; Swizzle<T,2,3,1> wy; Swizzle<T,2,3,2> wz; \
 Swizzle<T,2,3,3> ww; Swizzle<T,3,0,1,2> xyz; Swizzle<T,3,0,1,3> xyw; Swizzle<T,3,0,2,1> xzy; \
 Swizzle<T,3,0,2,3> xzw; Swizzle<T,3,0,3,1> xwy; Swizzle<T,3,0,3,2> xwz; Swizzle<T,3,1,0,2> yxz; \
 Swizzle<T,3,1,0,3> yxw; Swizzle<T,3,1,2,0> yzx; Swizzle<T,3,1,2,3> yzw; Swizzle<T,3,1,3,0> ywx; \
 Swizzle<T,3,1,3,2> ywz; Swizzle<T,3,2,0,1> zxy; Swizzle<T,3,2,0,3> zxw; Swizzle<T,3,2,1,0> zyx; \
 Swizzle<T,3,2,1,3> zyw; Swizzle<T,3,2,3,0> zwx; Swizzle<T,3,2,3,1> zwy; Swizzle<T,3,3,0,1> wxy; \
 Swizzle<T,3,3,0,2> wxz; Swizzle<T,3,3,1,0> wyx; Swizzle<T,3,3,1,2> wyz; Swizzle<T,3,3,2,0> wzx; \
 Swizzle<T,3,3,2,1> wzy; Swizzle<T,4,0,1,2,3> xyzw; Swizzle<T,4,0,1,3,2> xywz; Swizzle<T,4,0,2,1,3> xzyw; \
 Swizzle<T,4,0,2,3,1> xzwy; Swizzle<T,4,0,3,1,2> xwyz; Swizzle<T,4,0,3,2,1> xwzy; Swizzle<T,4,1,0,2,3> yxzw; \
 Swizzle<T,4,1,0,3,2> yxwz; Swizzle<T,4,1,2,0,3> yzxw; Swizzle<T,4,1,2,3,0> yzwx; Swizzle<T,4,1,3,0,2> ywxz; \
 Swizzle<T,4,1,3,2,0> ywzx; Swizzle<T,4,2,0,1,3> zxyw; Swizzle<T,4,2,0,3,1> zxwy; Swizzle<T,4,2,1,0,3> zyxw; \
 Swizzle<T,4,2,1,3,0> zywx; Swizzle<T,4,2,3,0,1> zwxy; Swizzle<T,4,2,3,1,0> zwyx; Swizzle<T,4,3,0,1,2> wxyz; \
 Swizzle<T,4,3,0,2,1> wxzy; Swizzle<T,4,3,1,0,2> wyxz; Swizzle<T,4,3,1,2,0> wyzx; Swizzle<T,4,3,2,0,1> wzxy; \
 Swizzle<T,4,3,2,1,0> wzyx; Swizzle<T,3,0,0,0> xxx; Swizzle<T,3,1,1,1> yyy; Swizzle<T,3,2,2,2> zzz; \
 Swizzle<T,3,3,3,3> www; Swizzle<T,4,0,0,0,0> xxxx; Swizzle<T,4,1,1,1,1> yyyy; Swizzle<T,4,2,2,2,2> zzzz; \
 Swizzle<T,4,3,3,3,3> wwww; Swizzle<T,2,0,1> rg; Swizzle<T,2,1,2> gb; Swizzle<T,2,2,3> ba; Swizzle<T,3,0,1,2> rgb; \
 Swizzle<T,3,1,2,3> gba; Swizzle<T,4,0,1,2,3> rgba;
