// For functions that are called through ctypes: what went wrong, or null.
#pragma once

#include <exception>
#include <string>

template <class F> const char* tried(F f) {
    static std::string message;
    try {
        f();
        return nullptr;
    } catch (const std::exception& e) {
        message = e.what();
        return message.c_str();
    }
}
