// What sm_90 has beside clusters: mbarriers, bulk tensor copies, and the matrix instructions of warpgroups.
#pragma once

#include "hopper_mbarrier.h"
#include "hopper_tma.h"
#include "hopper_wgmma.h"
