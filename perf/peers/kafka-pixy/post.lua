-- The request of perf/post.lua with the Content-Type that kafka-pixy wants for a body that is the message.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "../../post.lua")
wrk.headers["Content-Type"] = "text/plain"
